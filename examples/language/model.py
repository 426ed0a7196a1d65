"""The born-again paper's language models, small: an LSTM whose output layer is its embedding, and a CNN-LSTM.

Each takes ids (B, L) and, optionally, the state that it returned for the tokens before them. A body returns features
and the new state; a member returns logits and the new state.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """Embedding and LSTM, with dropout around each layer (Zaremba et al. 2014, arXiv:1409.2329)."""

    def __init__(self, tokens: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.rnn = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.drop = nn.Dropout(dropout)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        out, state = self.rnn(self.drop(self.embedding(ids)), state)
        return self.drop(out), state


class CNNLSTM(nn.Module):
    """Convolutions of several widths over each token's letters, highway layers and an LSTM (Kim et al. 2016,
    arXiv:1508.06615).

    Args:
        spelled: (K, S), the letters of each token, padded with 0.
        widths: of the convolutions; one of width w has `filters` · w channels, but at most `most`.
    """

    spelled: Tensor

    def __init__(
        self,
        spelled: Tensor,
        width: int,
        layers: int,
        dropout: float,
        letter: int = 15,
        widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7),
        filters: int = 25,
        most: int = 200,
        highways: int = 2,
    ) -> None:
        super().__init__()
        self.register_buffer("spelled", spelled)
        self.letters = nn.Embedding(int(spelled.max()) + 1, letter, padding_idx=0)
        counts = [min(most, filters * each) for each in widths]
        self.convolutions = nn.ModuleList(nn.Conv1d(letter, n, w) for n, w in zip(counts, widths, strict=True))
        size = sum(counts)
        self.gates = nn.ModuleList(nn.Linear(size, size) for _ in range(highways))
        self.maps = nn.ModuleList(nn.Linear(size, size) for _ in range(highways))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)  # passes its input through at first
        self.rnn = nn.LSTM(size, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.drop = nn.Dropout(dropout)

    def words(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) to features of their letters, (B, L, size)."""
        if not self.training:  # an exported graph cannot have as many rows as there are distinct words
            return self.read(ids.flatten()).unflatten(0, (ids.shape[0], ids.shape[1]))
        different, at = ids.unique(return_inverse=True)
        return self.read(different)[at]

    def read(self, ids: Tensor) -> Tensor:
        """Map ids (N,) to features (N, size)."""
        letters = self.letters(self.spelled[ids]).transpose(1, 2)
        x = torch.cat([conv(letters).tanh().amax(-1) for conv in self.convolutions], dim=1)
        for gate, mapped in zip(self.gates, self.maps, strict=True):
            share = gate(x).sigmoid()
            x = share * mapped(x).relu() + (1 - share) * x
        return x

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        out, state = self.rnn(self.drop(self.words(ids)), state)
        return self.drop(out), state


class Model(nn.Module):
    """A body with an output layer, which may be the body's embedding."""

    def __init__(self, body: nn.Module, tokens: int, width: int, tied: bool) -> None:
        super().__init__()
        self.body, self.tied = body, tied
        self.decoder = nn.Linear(width, tokens)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = body.embedding.weight
        else:
            nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        features, state = self.body(ids, state)
        return self.decoder(features), state


def spelled(vocabulary: list[str], longest: int = 20) -> Tensor:
    """The letters of each token as numbers from 2 on, between two 1s and padded with 0, (K, longest)."""
    letters = {letter: at for at, letter in enumerate(sorted(set("".join(vocabulary))), start=2)}
    rows = [[1, *(letters[letter] for letter in token[: longest - 2]), 1] for token in vocabulary]
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def read_vocabulary() -> list[str]:
    return (Path(__file__).parent / "vocabulary.txt").read_text(encoding="utf-8").splitlines()


def lstm(width: int = 64, layers: int = 1, dropout: float = 0.2, tokens: int = 0) -> LSTM:
    return LSTM(tokens or len(read_vocabulary()), width, layers, dropout)


def cnn_lstm(width: int = 64, layers: int = 1, dropout: float = 0.2, letters: int = 4) -> CNNLSTM:
    return CNNLSTM(spelled(read_vocabulary()), width, layers, dropout, filters=letters, most=8 * letters)


def make_teacher(width: int = 64, layers: int = 1, dropout: float = 0.2, network: str = "lstm") -> Model:
    """The LSTM with its embedding as output layer, or "cnn_lstm" with an output layer of its own."""
    body = {"lstm": lstm, "cnn_lstm": cnn_lstm}[network](width, layers, dropout)
    return Model(body, len(read_vocabulary()), width, tied=network == "lstm")
