"""Users' modules may work in place: everyone is given a tensor of their own, so that all is as if they did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import forward
from evaluate_helpers import untimed
from numpy.testing import assert_array_equal
from own_tensor_helpers import QUICK, both, trained, weights
from tiny import contents, settings
from torch import Tensor, nn

from ensemble_distill import load_student
from ensemble_distill.chains.generations import train_chain
from ensemble_distill.evaluation.cost import cost
from ensemble_distill.facts import Member
from ensemble_distill.serving.served import Served
from ensemble_distill.starts.layers_seen import run as run_network
from ensemble_distill.students.heads import BatchedLinear
from ensemble_distill.students.last_stage import LastStageHeads
from ensemble_distill.students.per_head import per_head
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough
NAMED = ("run", "name")


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
