"""Users' methods and views may work in place, too: everyone is given a tensor of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from own_tensor_helpers import ROWS, both, trained, weights
from tiny import contents, make_folder, refused, settings
from torch import nn

from ensemble_distill import load_student
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.source import Item
from ensemble_distill.data.views import open_view
from ensemble_distill.predictive import open_family
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough


# --- methods ----------------------------------------------------------------------------------------------------


METHOD = """
from dataclasses import replace

import torch

from ensemble_distill.methods.method import Labels, Method, Stage

IN_PLACE = {in_place}


class Mine(Method):
    title, paper, outputs = "the ensemble's mean", "none", "one distribution"

    def heads(self, members):
        return 1

    def stages(self, options, members):
        def start(student):
            # in place in either case: a trial of it is to leave no trace
            with torch.no_grad():
                student.heads.last.weight.mul_(0.5)
            return student

        def loss(batch, student, step):
            if IN_PLACE:
                batch.teacher.logits.mul_(0.5)
                batch.teacher.weights.square_()
                batch.labels.own.add_(1).clamp_(max=2)
                student.logits.mul_(0.5)
                teacher, labels = batch.teacher, batch.labels
            else:
                teacher = replace(
                    batch.teacher, logits=batch.teacher.logits * 0.5, weights=batch.teacher.weights.square()
                )
                labels = replace(batch.labels, own=(batch.labels.own + 1).clamp(max=2))
                student = replace(student, logits=student.logits * 0.5)
            return teacher.pooled().kl(student).mean() + labels.nll(student).mean() + labels.partner.float().mean()

        def watch(batch, student):
            return {{
                "teacher": batch.teacher.pooled().logits.square().mean(),
                "student": student.logits.square().mean(),
                "label": batch.labels.own.float().mean(),
                "partner": batch.labels.partner.float().mean(),
            }}

        return [Stage("one", 0.5, start, loss, watch=watch), Stage("two", 0.5, start, loss, watch=watch)]
"""


def test_losses_of_a_users_method(tmp_path: Path) -> None:
    """What is watched and validated is what was said, whatever the loss did to what it was given; and the trial that a
    method's stages are put to before the training leaves no trace."""
    found: dict[bool, tuple[bytes, list[dict[str, str]]]] = {}
    for in_place in (True, False):
        folder = make_folder(tmp_path / str(in_place), 2, ROWS)
        (folder / "mine.py").write_text(METHOD.format(in_place=in_place))
        these = {
            "train.method": str(folder / "mine.py") + ":Mine",
            "train.epochs": 2,
            "teachers.weights": [1, 3],
            "student.kwargs": {"dropout": 0.0},
            "views.transform": "crop-flip",
        }
        run = trained(folder, **these)
        lines = [line.split(",") for line in (run / "summary.csv").read_text().splitlines()]
        rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
        found[in_place] = weights(run), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert found[True] == found[False]
    assert {"teacher", "student", "label", "validation_nll"} <= found[True][1][0].keys()


def test_a_method_that_starts_in_place_is_tried_on_a_copy(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", 2, ROWS)
    source, end = METHOD.format(in_place=False), "        return [Stage("
    solving = f'{end}"only", 1.0, start, loss, fit=lambda student, rows: None)]\n'
    heads = []
    for factor in (0.5, 1.0):
        file = folder / f"by_{int(10 * factor)}.py"
        file.write_text((source[: source.index(end)] + solving).replace("mul_(0.5)", f"mul_({factor})"))
        these = settings(folder, {"train.method": f"{file}:Mine", "train.epochs": 0, "output.name": file.stem})
        cache_logits(these)
        heads.append(load_student(train(these).folder, trust=True).heads.state_dict()["layers.0.weight"])
    assert_array_equal(heads[0], 0.5 * heads[1])


def test_a_loss_cannot_change_how_heads_pool() -> None:
    student = Student(nn.Identity(), Heads(2, 3, (), 4), open_family("categorical"), torch.tensor([0.25, 0.75]))
    said: Any = student.predictive(student(torch.ones(1, 3)))
    said.weights.zero_()
    assert_array_equal(student.weights, [0.25, 0.75])


# --- views ------------------------------------------------------------------------------------------------------


VIEW = """
import numpy as np
BUFFER = np.zeros((1, 6, 6), np.float32)


class Plan:
    def __init__(self, row, total, index):
        self.rows, self.index = (row, (row + 1) % total), index

    def x(self, items, to):
        own, other = (item.x[..., 0] / np.float32(255) for item in items)
        made = (own + np.float32(0.1 * self.index) * other - np.float32(to.mean[0])) / np.float32(to.std[0])
        {returned}

    def y(self, items):
        return items[0].y, items[1].y, 0.5


class View:
    kinds = frozenset({{"pixels"}})

    def plan(self, seed, view, row, total):
        return Plan(row, total, view)
"""


def test_a_view_that_renders_into_its_buffer_again(tmp_path: Path) -> None:
    """Rows, views and preprocessings are rendered one after the other, and looked at together."""

    def road(folder: Path) -> tuple[dict[str, bytes], bytes]:
        again = folder.name == "in-place"
        returned = "BUFFER[0] = made\n        return BUFFER" if again else "return made[None].copy()"
        (folder / "view.py").write_text(VIEW.format(returned=returned))
        run = trained(folder, **{"views.transform": str(folder / "view.py") + ":View", "views.count": 3})
        records = {name: data for name, data in contents(folder / "cache").items() if name.startswith("records")}
        return records, weights(run)

    found, wanted = both(tmp_path, road)
    assert found == wanted


def test_a_view_that_writes_into_what_others_are_given_is_refused_and_told_how(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", 2, ROWS)
    file, writing = folder / "view.py", "x = item.x.copy()"
    source = VIEW.format(returned="return made[None]").replace(
        "        own, other", "        item = items[0]\n        x = item.x\n        x[:] = 0\n        own, other"
    )
    file.write_text(source)
    these = settings(folder, {"views.transform": f"{file}:View"})
    with refused("views.transform", "view.py:View: x of row 0 raised ValueError", "its items are read-only", writing):
        cache_logits(these)
    file.rename(folder / "other.py")
    (folder / "other.py").write_text(source.replace("x = item.x\n", f"{writing}\n"))
    cache_logits(settings(folder, {"views.transform": f"{folder / 'other.py'}:View"}))


def test_items_cannot_be_written_into() -> None:
    for kind in ["pixels", "tensor", "features"]:
        shape = {"pixels": (4, 6, 6, 1), "tensor": (4, 1, 6, 6), "features": (4, 6)}[kind]
        source = Arrays(np.zeros(shape, np.uint8 if kind == "pixels" else np.float32), None, kind)
        mine = np.ones(3, np.float32)
        for item in (source.item(0), Item(mine, None, "features")):
            with pytest.raises(ValueError, match="read-only"):
                item.x[...] = 2
        mine[:] = 3  # whoever made it may go on
        x = open_view("none").plan(0, 0, 0, 4).x([Item(mine, None, "features")], None)
        assert_array_equal(x, 3)
        x[:] = 4
        assert_array_equal(mine, 3)
