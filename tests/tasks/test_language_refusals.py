"""Where rows are told by position: data, members, windows and starts that do not go together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from language_helpers import (
    make_language,
    make_tagged,
    settings,
    words,
)
from tiny import refused

from ensemble_distill import cache_logits, train, train_chain
from ensemble_distill.data import open_source
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.tasks.checks.positions import IGNORED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cached; tests may add runs."""
    made = tmp_path_factory.mktemp("language") / "language"
    make_language(made)
    cache_logits(settings(made))
    return made


# --- what is refused ----------------------------------------------------------------------------------------------


def test_labels_that_are_all_ignored_are_refused(tmp_path: Path) -> None:
    make_tagged(tmp_path / "tags", ignored=1.1)
    with refused("data.train", "120 labels", str(IGNORED)):
        cache_logits(settings(tmp_path / "tags"))


def test_labels_that_no_member_knows_are_refused(tmp_path: Path) -> None:
    make_tagged(tmp_path / "tags", labels=5)
    with refused("data.train", "label 4", "0 to 2"):
        cache_logits(settings(tmp_path / "tags"))


def test_a_text_shorter_than_a_window_is_refused(folder: Path) -> None:
    (folder / "tiny.txt").write_text("a b c\n")
    with refused("data.test", "4 tokens", "5", "tokens.window"):
        cache_logits(settings(folder, data__test="tiny.txt"))


def test_a_token_outside_the_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "closed.txt").write_text("\n".join(["<eos>", *"abcdefg"]) + "\n")
    sets = {"tokens.vocabulary": "closed.txt", "output.cache": str(tmp_path / "c")}
    with refused("data.train", '"h"', "8", "<unk>"):
        cache_logits(settings(folder, **sets))
    np.save(folder / "ids.npy", np.arange(30) % 12)
    with refused("ids.npy", "token 10", "position 10", "0 to 9"):
        cache_logits(settings(folder, **{"data.test": "ids.npy", "output.cache": str(tmp_path / "c")}))


def test_members_of_another_vocabulary_are_refused(folder: Path, tmp_path: Path) -> None:
    sets = {"tokens.size": 7, "tokens.vocabulary": None, "output.cache": str(tmp_path / "c")}
    with refused("member-0", "10 numbers", "7 tokens"):
        cache_logits(settings(folder, **sets))
    with refused("data.train", "7 tokens", "10"):  # another than the cache's
        train(settings(folder, **{**sets, "output.cache": "cache", "output.name": "never"}))
    assert not (folder / "runs" / "never" / "student.safetensors").exists()


def test_a_window_of_another_length_does_not_continue_the_cached_stream(folder: Path) -> None:
    with refused("data.train", "train"):
        train(settings(folder, **{"tokens.window": 6, "output.name": "never"}))
    with refused("cache", "overwrite"):
        train(settings(folder, **{"tokens.context": 2, "output.name": "never"}))


def test_a_member_that_fails_on_ids_or_returns_no_positions_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "wrong.py").write_text(
        (folder / "model.py").read_text()
        + "\n\nclass Last(Model):\n    def forward(self, ids):\n        return super().forward(ids)[0][:, -1]\n"
        + "\n\nclass Stateful(Model):\n    def forward(self, ids, state=None):\n"
        + "        return super().forward(ids, (torch.zeros(2, len(ids), 6), torch.zeros(1, len(ids), 6)))\n"
    )
    sets = {"output.cache": str(tmp_path / "c")}
    with refused("member-0", "(8, 10)", "positions"):
        cache_logits(settings(folder, **sets, **{"teachers.model": "wrong.py:Last"}))
    with refused("member-0", "hidden"):
        cache_logits(settings(folder, **sets, **{"teachers.model": "wrong.py:Stateful"}))


def test_a_text_is_lines_to_classify_without_a_task_of_tokens_whose_keys_are_of_no_other(folder: Path) -> None:
    assert open_source(str(folder / "test.txt")).kind == "text"
    with refused("tokens.window", "classification"):
        settings(folder, task="classification")


def test_starts_that_know_no_positions_are_refused(folder: Path) -> None:
    with refused("student.init", "positions"):
        train(settings(folder, **{"student.init": ["member-*"], "output.name": "never"}))
    with refused("student.heads", "positions"):
        train(settings(folder, **{"student.heads": "last-stage", "output.name": "never"}))


def test_a_student_of_a_student_is_of_the_same_vocabulary(folder: Path, tmp_path: Path) -> None:
    train_chain(settings(folder, **{"train.method": "ban", "train.generations": 2, "output.name": "chain"}))
    assert (folder / "runs" / "chain").is_dir()


def test_characters_are_tokens_too(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("ab\nab b")
    source = open_source(str(text), "language-modelling", Reading("character", 3, 2, built_from=str(text)))
    assert source.classes == ("<unk>", "b", "a", "\n", " ")
    assert source.labels is not None
    assert source.labels.tolist() == [[2, 1, 3], [2, 1, 4], [1, IGNORED, IGNORED]]
    assert source.item(1).x.tolist() == [2, 1, 3, 2, 1]
    assert source.item(0).x.tolist() == [3, 3, 3, 2, 1]
    assert words(9, 0).count(" ") > 0
