"""The parameter counts of the born-again paper's language models, beside the paper's figures (its table 6)."""

from __future__ import annotations

import torch
from model import CNNLSTM, LSTM, Model
from torch import nn

TOKENS, LETTERS = 10_000, 51  # of the paper's Penn Treebank


def count(module: nn.Module) -> float:
    """The number of parameters, in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def models() -> dict[str, tuple[nn.Module, str]]:
    """Each model, and the size that the paper states; on the meta device, since they are never run."""
    with torch.device("meta"):
        tied = {n: Model(LSTM(TOKENS, 1500, n, 0.65), TOKENS, 1500, tied=True) for n in (1, 2)}
        words = torch.full((TOKENS, 21), LETTERS, device="cpu")
        large = CNNLSTM(words, 650, 2, 0.5, widths=(1, 2, 3, 4, 5, 6, 7), filters=50, most=200)
        spelled = Model(large, TOKENS, 650, tied=False)
    return {
        "LSTM, one layer of 1,500, tied": (tied[1], "52 M, and one layer"),
        "LSTM, two layers of 1,500, tied": (tied[2], "52 M, and one layer"),
        "CNN-LSTM, letters, two layers of 650": (spelled, "19 M"),
    }


if __name__ == "__main__":
    for name, (model, stated) in models().items():
        print(f"{name}: {count(model):.1f} M (stated: {stated})")
