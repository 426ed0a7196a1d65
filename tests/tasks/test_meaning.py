"""What members return, and what is said of it where it cannot be what the settings call it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks import open_task
from ensemble_distill.tasks.multi_label import MultiLabel


def answered(key: str, values: Any, output: str = "probabilities") -> np.ndarray[Any, Any]:
    """As the pass has it, of one batch."""
    member, task, raw = Member("m7", "0" * 64, output), open_task(key), torch.as_tensor(values).float()
    task.refuse_unlikely(raw, member, "test", range(len(raw)))
    return task.answers(raw, member, "test", range(len(raw)))


def softmaxes(classes: int) -> torch.Tensor:
    return (3 * torch.from_numpy(np.random.default_rng(0).normal(size=(512, classes)))).float().softmax(1)


ROUNDINGS = {
    "bfloat16": lambda p: p.bfloat16().float(),
    "float16": lambda p: p.half().float(),
    "3 decimals": lambda p: (1000 * p).round() / 1000,
    "4 decimals": lambda p: (10000 * p).round() / 10000,
    "nearly": lambda p: p - 5e-4 * (p == p.amin(1, keepdim=True)),
}


@pytest.mark.parametrize("rounding", list(ROUNDINGS))
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_rounded_probabilities_are_taken_and_never_for_logits(classes: int, rounding: str) -> None:
    p = softmaxes(classes)
    rounded = ROUNDINGS[rounding](p)
    found = torch.from_numpy(answered("classification", rounded)).softmax(1)
    assert (found - p).abs().max() < 0.01
    if rounding != "nearly":
        with pytest.raises(EdistillError, match=r'Set teachers\.output = "probabilities"'):
            answered("classification", rounded, "logits")


def test_coarse_probabilities_of_many_classes_say_by_how_much_and_what_to_do() -> None:
    p = softmaxes(1000)
    coarse = ROUNDINGS["3 decimals"](p)
    with pytest.raises(
        EdistillError, match=r"row 0 of test .* sum to 0\.\d+\. They have 3 decimals\. Write 6"
    ) as caught:
        answered("classification", coarse)
    assert "logits" not in str(caught.value)
    for mended in ((10**6 * p).round() / 10**6, coarse / coarse.sum(-1, keepdim=True)):  # as the message says
        found = torch.from_numpy(answered("classification", mended)).softmax(1)
        assert (found - p).abs().max() < 0.03
    with pytest.raises(EdistillError, match=r'Set teachers\.output = "probabilities"'):
        answered("classification", coarse, "logits")


def test_logits_that_are_said_to_be_probabilities_are_called_so() -> None:
    for key in ("classification", "multi-label"):
        with pytest.raises(EdistillError, match=r'Set teachers\.output = "logits"'):
            answered(key, torch.linspace(-3, 3, 36).reshape(12, 3))


# --- several labels a row ------------------------------------------------------------------------------------------


def test_probabilities_of_labels_may_be_rounded_beyond_1() -> None:
    p = np.full((12, 3), 0.3, np.float32)
    p[3] = np.nextafter(np.float32(1), np.float32(2)), -1e-7, 1.0005
    found = answered("multi-label", p)
    np.testing.assert_allclose(found[3], [np.log(1e7), -np.log(1e7), np.log(1e7)], rtol=1e-3)
    np.testing.assert_allclose(found[0], np.log(0.3 / 0.7), rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "told"), [(1.02, "out.clamp(0, 1)"), (-0.02, "out.clamp(0, 1)"), (5.0, "Fix what it says of that row")]
)
def test_a_row_beyond_0_and_1_makes_no_logits_of_the_others(value: float, told: str) -> None:
    p = np.full((12, 3), 0.3, np.float32)
    p[3, 1] = value
    with pytest.raises(EdistillError, match=f"at row 3 of test they lie between .*{value:.4f}") as caught:
        answered("multi-label", p)
    assert told in str(caught.value)
    assert "logits" not in str(caught.value)


def of_split(z: Any, labels: Any, output: str = "logits") -> str | None:
    return MultiLabel.refuse_other_meaning(Member("m7", "0" * 64, output), np.asarray(z), labels, None, True)


@pytest.mark.parametrize("count", [3, 20])
def test_sigmoids_of_rare_labels_are_no_logits(count: int) -> None:
    """Of eight rows nothing shows it: none has a label that is likely."""
    draws = np.random.default_rng(0)
    labels = (draws.random((400, count)) < 0.03).astype(np.int64)
    p = 1 / (1 + np.exp(4 - 5 * labels - draws.normal(size=labels.shape))).astype(np.float32)
    answered("multi-label", p[labels.sum(1) == 0][:8], "logits")
    with pytest.raises(EdistillError, match=r'Member m7 .* Set teachers\.output = "probabilities"'):
        of_split(p, labels)
    assert of_split(np.log(p / (1 - p)), labels, "probabilities") is None
    assert of_split(np.log(p / (1 - p)), labels) is None


@pytest.mark.parametrize("steps", [0, 1, 20, 100])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_honest_networks_are_not_called_sigmoids(count: int, steps: int) -> None:
    """Whatever they have learned; where a few labels' logits all lie between 0 and 1 by chance, that is told."""
    draws = np.random.default_rng(0)
    x = torch.from_numpy(draws.random((1000, 16)).astype(np.float32))
    for frequent in (0.05, 0.5, 0.95):
        for seed in range(4):
            torch.manual_seed(seed)
            score = x @ torch.randn(16, count)
            y = (score > score.quantile(1 - frequent, dim=0)).float()
            net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, count))
            optimizer = torch.optim.Adam(net.parameters(), 1e-2)
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(net(x), y).backward()
                optimizer.step()
            z = net(x).detach().numpy()
            remark = of_split(z, y.numpy().astype(np.int64))
            assert (remark is not None) == (z.min() >= 0 and z.max() <= 1)
            assert remark is None or 'set teachers.output = "probabilities"' in remark


def test_little_shows_nothing() -> None:
    assert of_split(np.full((900, 1), 0.3, np.float32), np.zeros((900, 1), int)) is None
    assert of_split(np.full((2000, 3), 0.3, np.float32), np.zeros((2000, 3), int)) is None


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_one_number_of_two_classes_becomes_two_as_the_message_says(output: str, sigmoid: bool, column: bool) -> None:
    """The message never sends a sigmoid to (0, p), nor to p / p."""
    task, z = open_task("classification"), torch.linspace(-3, 3, 9)
    said = z.sigmoid() if sigmoid else z
    out = said[:, None] if column else said
    member = Member("m7", "0" * 64, output)
    with pytest.raises(EdistillError, match=r"returns (1 number|\(9,\))") as caught:
        task.answers(task.joined(out, 9, member), member, "test", range(9))
    line = re.search(r"lambda module, inputs, out: (.*)\)$", str(caught.value))
    assert line is not None
    set_to = re.search(r'Set teachers\.output = "(\w+)"', str(caught.value))
    pair = eval(line[1], {"out": out})
    found = torch.from_numpy(answered("classification", pair, output if set_to is None else set_to[1]))
    assert torch.allclose(found.softmax(1)[:, 1], z.sigmoid(), atol=1e-5)


def test_labels_that_leave_out_numbers_are_to_be_numbered() -> None:
    class Rows:
        classes, labels = None, np.array([0, 5, 9, 5])

    with pytest.raises(EdistillError, match=r"label 9, but the members have classes 0 to 2.*numpy\.unique\(y, return"):
        open_task("classification").found({"train": Rows()}, {"m7": 3}, None)  # type: ignore[dict-item]
