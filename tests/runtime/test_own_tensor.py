"""Users' modules may work in place: everyone is given a tensor of their own, so that all is as if they did not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import forward
from evaluate_helpers import untimed
from numpy.testing import assert_array_equal
from safetensors.torch import save_file
from tiny import CLASSES, contents, make_folder, refused, settings
from torch import Tensor, nn

from ensemble_distill import load_student
from ensemble_distill.chains.generations import train_chain
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.source import Item
from ensemble_distill.data.views import open_view
from ensemble_distill.evaluation.cost import cost
from ensemble_distill.facts import Member
from ensemble_distill.predictive import open_family
from ensemble_distill.serving.served import Served
from ensemble_distill.starts.layers_seen import run as run_network
from ensemble_distill.students.heads import BatchedLinear, Heads
from ensemble_distill.students.last_stage import LastStageHeads
from ensemble_distill.students.per_head import per_head
from ensemble_distill.students.student import Student
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough

# members and bodies of one architecture; {scaled} makes x smaller, and {rectified} is a ReLU
SOURCE = """
from torch import nn


class Scaled(nn.Module):
    def forward(self, x):
        {scaled}
        return x.mean(1)


def make_teacher():
    return nn.Sequential(*make_body(), nn.Linear(12, 3))


def make_body():
    return nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(36, 12), {rectified}, nn.Linear(12, 12), {rectified})
"""
IN_PLACE = {"scaled": "x.sub_(0.5).div_(0.25)", "rectified": "nn.ReLU(inplace=True)"}
PLAIN = {"scaled": "x = (x - 0.5) / 0.25", "rectified": "nn.ReLU()"}
ROWS = {"train": 24, "validation": 24, "test": 10, "ood/noise": 7}
QUICK = {"train.epochs": 1}
NAMED = ("run", "name")


def member() -> nn.Module:
    layers = nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()
    return nn.Sequential(nn.Identity(), nn.Flatten(), *layers, nn.Linear(12, CLASSES))


def folder_of(folder: Path, forms: Mapping[str, str]) -> Path:
    """Three members, whose module works in place or not."""
    make_folder(folder, 0, ROWS)
    (folder / "model.py").write_text(SOURCE.format(**forms))
    (folder / "teachers").mkdir()
    for index in range(3):
        torch.manual_seed(index)
        state = {name: 2 * weight for name, weight in member().state_dict().items()}
        save_file(state, folder / "teachers" / f"member-{index}.safetensors")
    return folder


def both(tmp_path: Path, road: Callable[[Path], Any]) -> tuple[Any, Any]:
    """What a road leads to with modules that work in place, and with others."""
    found = []
    for name, forms in (("in place", IN_PLACE), ("plain", PLAIN)):
        folder = folder_of(tmp_path / name.replace(" ", "-"), forms)
        found.append(road(folder))
    return found[0], found[1]


def trained(folder: Path, **more: Any) -> Path:
    """A cache and a run; its folder."""
    these = settings(folder, {**QUICK, **more})
    cache_logits(these)
    return train(these).folder


def weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


# --- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["none", "crop-flip+mixup", "crop-flip+ods", "mixup+confods"])
def test_caching_passes_and_gradients(tmp_path: Path, transform: str) -> None:
    """Every record, and the inputs that members' gradients have moved, to the last bit."""

    def road(folder: Path) -> dict[str, bytes]:
        cache_logits(settings(folder, {"views.transform": transform}))
        assert cache_logits(settings(folder, {"views.transform": transform})).added == 0, "the probe, too"
        return contents(folder / "cache", ["args.toml"])

    found, wanted = both(tmp_path, road)
    assert found == wanted


def test_what_a_member_returned_stays_though_it_returns_its_buffer_again() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = torch.zeros(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.buffer.copy_(x)

    module, of = Buffered(), Member("m", "sha")
    batches = [torch.full((4, 2), float(index)) for index in range(3)]
    answers = [forward(module, x, of, "here") for x in batches]
    numbers = [forward(module, x, Member("m", "sha", output="mean-logvar"), "here") for x in batches]
    for answer, number, x in zip(answers, numbers, batches, strict=True):
        assert_array_equal(answer, x)
        assert_array_equal(number, x)


# --- students ---------------------------------------------------------------------------------------------------

STARTS: dict[str, dict[str, Any]] = {
    "fresh": {},
    "kept rows of two generations' stages": {"train.epochs": 2, "method.hinton-share": 0.5},
    "a member": {"student.init": "member-0"},
    "side by side": {"student.init": ["member-0", "member-1"]},
    "every member": {"student.init": ["member-*"]},
    "compressed": {"student.init": ["member-*"], "student.compress": 0.7},
    "last stages": {"student.heads": {"last-stage": "4"}},
    "members' last stages": {"student.init": ["member-0"], "student.heads": {"last-stage": "5", "adapt-from": "4"}},
    "members' compressed last stages": {
        "student.init": ["member-0"],
        "student.heads": {"last-stage": "3", "rank": 4, "compress": 0.9},
    },
    "rank one": {"train.method": "batch-ensemble"},
}


@pytest.mark.parametrize("start", STARTS)
def test_training_from_kept_rows_and_solving(tmp_path: Path, start: str) -> None:
    """The weights that training, and what is solved for before it, end in; and the validation along the way."""

    def road(folder: Path) -> tuple[bytes, list[str]]:
        run = trained(folder, **STARTS[start])
        rows = (run / "summary.csv").read_text().splitlines()
        seconds = rows[0].split(",").index("seconds")
        return weights(run), [",".join(row.split(",")[:seconds] + row.split(",")[seconds + 1 :]) for row in rows]

    found, wanted = both(tmp_path, road)
    assert found == wanted


def test_generations(tmp_path: Path) -> None:
    """A student that works in place is the next one's teacher."""

    def road(folder: Path) -> list[bytes]:
        these = settings(folder, {**QUICK, "train.method": "ban", "train.generations": 3})
        cache_logits(these)
        chain = train_chain(these).folder
        document = untimed(evaluate(these, str(chain), shifts=True).to_json(), but=NAMED)
        return [json.dumps(document).encode(), *(weights(chain / f"generation-{index}") for index in (1, 2, 3))]

    found, wanted = both(tmp_path, road)
    assert found == wanted


# --- evaluating, calibrating, exporting -------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_evaluating_and_calibrating(tmp_path: Path, cached: bool) -> None:
    """Several runs beside members that are asked themselves."""

    def road(folder: Path) -> Any:
        trained(folder)
        these = settings(folder, QUICK | ({} if cached else {"output.cache": "nothing"}))
        train(settings(folder, {**QUICK, "train.seed": 1}))
        report = calibrate(these, "hydra-s0")
        document = untimed(evaluate_together(these, ["hydra-s0", "hydra-s1"], shifts=True).to_json(), but=NAMED)
        return report.calibration, report.before, report.after, document

    found, wanted = both(tmp_path, road)
    assert found == wanted


def test_exporting_compares_what_both_saw(tmp_path: Path) -> None:
    def road(folder: Path) -> dict[str, Any]:
        run = trained(folder)
        x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        before, student = x.clone(), load_student(run, trust=True)
        with torch.no_grad():
            raw = student(x)
        assert torch.equal(x, before), "what a student is given stays as it is"
        (file,) = export(settings(folder, QUICK), "hydra-s0", onnx=True).files
        return {**Served(file).run(x.numpy()), "raw": raw.numpy()}

    found, wanted = both(tmp_path, road)
    for name, values in wanted.items():
        assert_array_equal(found[name], values)


def test_costs_are_of_the_same_numbers_each_time() -> None:
    seen: list[Tensor] = []

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x.mul_(2)

    x = torch.ones(1, 3)
    cost([Doubling(), Doubling()], [x, x], budget=0.0)
    assert len(seen) == 2 * (1 + 3 * (2 + 2))  # counted; alone and in turn, each once so that it is at hand
    assert all(torch.equal(each, torch.ones(1, 3)) for each in seen)


def test_a_network_that_is_compressed_keeps_what_it_said() -> None:
    buffer = torch.zeros(2, 3)

    class Buffered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return buffer.copy_(x.mul_(2))

    batches = [torch.full((2, 3), float(index)) for index in range(3)]
    made = [run_network(Buffered(), x) for x in batches]
    for index, (x, y) in enumerate(zip(batches, made, strict=True)):
        assert_array_equal(x, np.full((2, 3), index))
        assert_array_equal(y, np.full((2, 3), 2 * index))


def test_a_single_heads_last_stage_leaves_the_features_as_they_are() -> None:
    heads = LastStageHeads(None, per_head(nn.ReLU(inplace=True), 1), BatchedLinear(1, 3, 2))
    features = torch.tensor([[-1.0, 0.0, 1.0]])
    assert torch.equal(heads(features), heads(features.clone()))
    assert_array_equal(features, [[-1.0, 0.0, 1.0]])


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
