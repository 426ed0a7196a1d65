"""A step of one row: bodies that normalize by the batch cannot take it, and are not asked to take fewer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import examples, make_folder, refused_and_kept, save_data, settings

from ensemble_distill.errors import EdistillError
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

QUICK = {"train.epochs": 1, "views.transform": "mixup", "views.count": 1, "train.method": "kd"}
ONE = {**QUICK, "train.batch-size": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_folder(tmp_path / "tiny", rows={"train": 6})
    cache_logits(settings(made, QUICK))
    return made


def test_one_row_a_step_is_told_for_what_it_is(folder: Path) -> None:
    with refused_and_kept(folder / "cache", "it takes two rows and not one", "Set train.batch-size to 2 or more"):
        train(settings(folder, ONE))
    with pytest.raises(EdistillError) as told:
        train(settings(folder, ONE))
    assert "lower" not in str(told.value)


@pytest.mark.parametrize("remedy", [{"train.batch-size": 2}, {"train.freeze-bn": True}])
def test_either_remedy_works(folder: Path, remedy: dict[str, object]) -> None:
    assert train(settings(folder, {**ONE, **remedy})).fresh


def test_of_one_training_row_no_batch_size_is_right(folder: Path) -> None:
    x, y = examples(1, 1)
    save_data(folder, "train", 1, x=x, y=y)
    asked = {**QUICK, "output.cache": str(folder / "cache-2")}
    cache_logits(settings(folder, asked))
    with refused_and_kept(folder / "cache-2", "Give more than one training row"):
        train(settings(folder, asked))
    assert train(settings(folder, {**asked, "train.freeze-bn": True})).fresh


def test_a_body_without_batch_norm_takes_one_row(folder: Path) -> None:
    code = (folder / "model.py").read_text()
    (folder / "plain.py").write_text(code.replace("nn.BatchNorm1d(width), ", ""))
    assert train(settings(folder, {**ONE, "student.model": str(folder / "plain.py") + ":make_body"})).fresh


def test_a_body_that_fails_on_many_rows_is_asked_to_take_fewer(folder: Path) -> None:
    (folder / "few.py").write_text(
        "from model import make_body as plain\nfrom torch import nn\n"
        "class Few(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = plain()\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 2:\n            raise MemoryError('none left')\n"
        "        return self.body(x)\n"
    )
    few = {**QUICK, "student.model": str(folder / "few.py") + ":Few"}
    with refused_and_kept(folder / "cache", "6 rows at once are train.batch-size: lower it where memory ran out"):
        train(settings(folder, few))
    assert train(settings(folder, {**few, "train.batch-size": 2})).fresh
