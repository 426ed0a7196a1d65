"""Bad input where rows are told by position, and states that no stream can be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from language_helpers import CONTEXT, TOKENS, VOCABULARY, WINDOW, make_language, settings
from tiny import refused
from torch import Tensor, nn

from ensemble_distill import cache_logits, evaluate, export, predict, train
from ensemble_distill.data import open_source
from ensemble_distill.data.vocabulary import Reading, read_vocabulary
from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.onnx import UNROLLS
from ensemble_distill.exporting.streams import State, state_of
from ensemble_distill.runtime.progress import Silent

ROW = CONTEXT + WINDOW


class Warned(Silent):
    """Keeps what it was warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cached, with OOD rows without labels, a run and its graph."""
    made = tmp_path_factory.mktemp("attack") / "language"
    make_language(made)
    np.savez(made / "ood.npz", x=np.arange(3 * ROW).reshape(3, ROW) % len(VOCABULARY))
    with (made / "edistill.toml").open("a") as file:
        file.write('data.ood.far = "ood.npz"\n')
    cache_logits(settings(made))
    train(settings(made, train__method="hydra"))
    export(settings(made), "hydra-s0", onnx=True)
    return made


def graph(folder: Path) -> Path:
    return folder / "runs" / "hydra-s0" / "export" / "model.onnx"


def test_ood_rows_without_labels_are_told_at_the_positions_of_the_others(folder: Path) -> None:
    found = evaluate(settings(folder), "hydra-s0")
    assert found.rows == TOKENS["test"]
    assert found.ood is not None
    assert 0 <= found.ood["far"]["ensemble"]["total_uncertainty"] <= 1


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (0, np.full((2, WINDOW - 1), 2), [str(WINDOW - 1), str(WINDOW)]),
        (0, np.full((2, WINDOW), 77), ["77", "0 to 9"]),
        (0, np.full((2, WINDOW), -100), ["10 labels", "-100"]),
        (77, None, ["77", "largest id"]),
    ],
)
def test_predict_refuses_labels_and_ids_that_the_student_has_not(
    folder: Path, tmp_path: Path, x: int, y: np.ndarray | None, said: list[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=np.full((2, ROW), x), **({} if y is None else {"y": y}))
    with refused(*said):
        predict(graph(folder), str(tmp_path / "x.npz"))


def test_an_empty_text_is_not_to_be_read_in_shorter_windows(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(EdistillError) as caught:
        predict(graph(folder), str(tmp_path / "empty.txt"))
    assert "0 tokens" in str(caught.value)
    assert "window" not in str(caught.value)


def test_a_mark_at_the_beginning_and_ends_of_lines_are_no_part_of_a_token(tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_bytes("\r\n".join(VOCABULARY).encode("utf-8-sig") + b"\r\n")
    assert read_vocabulary(tmp_path / "tokens.txt") == VOCABULARY
    (tmp_path / "text.txt").write_bytes("a b c d e\n".encode("utf-8-sig"))
    reading = Reading("word", WINDOW, CONTEXT, vocabulary=str(tmp_path / "tokens.txt"))
    labels = open_source(str(tmp_path / "text.txt"), "language-modelling", reading).labels
    assert labels is not None
    assert labels[0].tolist() == [VOCABULARY.index(letter) for letter in "abcde"]


def test_an_empty_token_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("a\nb\n\nc\n")
    with refused("tokens.txt", "2", "Remove it"):
        read_vocabulary(tmp_path / "tokens.txt")


def test_a_size_beside_a_vocabulary_is_refused(folder: Path) -> None:
    with refused("tokens.size", "5", "tokens.vocabulary"):
        settings(folder, tokens__size=5)


# --- states -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A GRU, whose ways to hold its state are those of the classes below."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.rnn = nn.Embedding(10, 6), nn.GRU(6, 6, batch_first=True)

    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.rnn(self.table(ids), state)


class BeginsWithOnes(Recurrent):
    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(ids, torch.ones(1, ids.shape[0], 6) if state is None else state)


class TakesNone(Recurrent):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(ids)


class Grows(Recurrent):
    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = self.table(ids) if state is None else torch.cat([state, self.table(ids)], 1)
        return seen.cumsum(1)[:, -ids.shape[1] :], seen


class OfOneLength(Recurrent):
    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, after = super().forward(ids, state)
        return out + torch.ones(ROW, 1), after


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BeginsWithOnes, "zeros"),
        (TakesNone, "does not take the state"),
        (Grows, "grows"),
        (OfOneLength, f"{ROW} tokens, and fails on {ROW + 1}"),
    ],
)
def test_why_no_stream_can_be_given_a_state_is_told(body: type[nn.Module], said: str) -> None:
    found = state_of(body(), ROW)
    assert isinstance(found, str)
    assert said in found
    assert isinstance(state_of(Recurrent(), ROW), State)


LOOP = """

class Loop(Body):
    def forward(self, ids, state=None):
        out = []
        for at in range(ids.shape[1]):
            said, state = super().forward(ids[:, at : at + 1], state)
            out.append(said)
        return torch.cat(out, 1), state
"""


@pytest.mark.skipif(UNROLLS, reason="torch before 2.13 does not export one recurrence behind another")
def test_a_graph_of_one_length_is_not_written_in_silence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "loop.py").write_text((folder / "model.py").read_text() + LOOP)
    train(settings(folder, **{"student.model": "loop.py:Loop", "output.name": "loop"}))
    told = Warned()
    export(settings(folder), "loop", onnx=True, trust=True, progress=told)
    assert [all(word in text for word in ("state", "constant", str(ROW))) for text in told.warnings] == [True]
    monkeypatch.setattr("ensemble_distill.exporting.onnx.UNROLLS", True)
    export(settings(folder), "loop", onnx=True, trust=True, progress=told)
    assert ["torch 2.13 or newer" in text for text in told.warnings] == [False, True]
    model = folder / "runs" / "loop" / "export" / "model.onnx"
    assert [end.name for end in onnxruntime.InferenceSession(str(model)).get_inputs()] == ["input_ids"]
    nll = np.mean([row["nll"] for row in predict(model, str(folder / "test.txt")).rows])
    assert nll == pytest.approx(evaluate(settings(folder), "loop", trust=True).models["student"]["nll"], abs=1e-5)


def test_a_graph_of_one_number_of_rows_is_refused(folder: Path) -> None:
    (folder / "rows.py").write_text(
        (folder / "model.py").read_text()
        + "\n\nclass Rows(Body):\n    def forward(self, ids):\n"
        + "        return super().forward(ids)[0].reshape(len(ids), ids.shape[1], 6) + torch.zeros(len(ids), 1, 1)\n"
    )
    train(settings(folder, **{"student.model": "rows.py:Rows", "output.name": "rows"}))
    model = folder / "runs" / "rows" / "export" / "model.onnx"
    with refused("rows", "constant", "safetensors"):
        export(settings(folder), "rows", onnx=True, trust=True)
    assert not model.exists()
