"""Members that are no networks go through the whole pass: a table of ready-made outputs, and what answers arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from tiny import CLASSES, contents, examples, linear, member_state, refused, refused_and_kept
from torch import Tensor, nn

from ensemble_distill.cache.reader import Cache
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.caching.replay import ROWS as REPLAYED
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import Item
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.spread import spread
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.answering import ROUNDING, Answering, Inputs, Rows
from ensemble_distill.teachers.teacher import Teacher

TO = Preprocessing((6, 6), (0.5,), (0.5,))
LENGTHS = {"train": 13, "ood/far": 5}
Outputs = Mapping[str, NDArray[np.float32]]

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


class Table:
    """Ready-made outputs of every split: row numbers are all it asks for."""

    module, wants, fineness, remark = None, None, ROUNDING, None

    def __init__(self, task: type[Task], member: Member, outputs: Outputs) -> None:
        self.task, self.member, self.outputs = task, member, outputs

    def meets(self, split: str, rows: Rows) -> None:
        """It answers any."""

    def to(self, device: torch.device) -> None:
        """It stands nowhere."""

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        assert inputs is None
        return self.outputs[split][list(rows)]


class Session:
    """A linear member in NumPy, as a runtime of its own would be: it wants arrays."""

    module, fineness, remark = None, ROUNDING, None

    def __init__(self, task: type[Task], member: Member, seed: int, mixes: bool = False) -> None:
        self.task, self.member, self.mixes = task, member, mixes
        state = member_state(seed)
        self.weight, self.bias = state["2.weight"].numpy(), state["2.bias"].numpy()

    @property
    def wants(self) -> Inputs:
        return Inputs(self.member.preprocessing)

    def meets(self, split: str, rows: Rows) -> None:
        """It answers any."""

    def to(self, device: torch.device) -> None:
        """It stays where it is."""

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        assert inputs is not None
        z: NDArray[np.float32] = inputs.numpy().reshape(len(rows), -1) @ self.weight.T + self.bias
        return z - z.mean(0) if self.mixes else z


def nothing() -> nn.Module:
    raise AssertionError("there is no module to build")


@dataclass(frozen=True)
class Other(Teacher):
    """A member that opens to what is given; the rest of a `Teacher` is nothing to it."""

    opens: Any = field(default=None)

    def open(self, task: type[Task], positions: int | None = None) -> Answering:
        return self.opens(task, self.member)  # type: ignore[no-any-return]


def table(name: str, outputs: Outputs) -> Teacher:
    return Other(Member(name, name), nothing, opens=lambda task, member: Table(task, member, outputs))


def session(name: str, seed: int, mixes: bool = False) -> Teacher:
    member = Member(name, name, preprocessing=TO)
    return Other(member, nothing, opens=lambda task, member: Session(task, member, seed, mixes))


def network(name: str, seed: int) -> Teacher:
    return Teacher(Member(name, name, preprocessing=TO), lambda: linear(seed))


def outputs(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(rows, CLASSES)).astype(np.float32) for name, rows in LENGTHS.items()}


class Watched(Arrays):
    """Notes which rows are decoded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.decoded: list[int] = []

    def item(self, row: int) -> Item:
        self.decoded.append(row)
        return super().item(row)


def plans(transform: str = "none") -> dict[str, SplitPlan]:
    found = {}
    for seed, (name, rows) in enumerate(LENGTHS.items()):
        x, _ = examples(rows, seed)
        spec = transform if name == "train" else "none"
        found[name] = SplitPlan(Watched(x[..., None], None, "pixels"), open_view(spec), spec, 0, 1)
    return found


def run(cache: Path, splits: Mapping[str, SplitPlan], teachers: Sequence[Teacher]) -> int:
    return cache_outputs(
        cache, Classification, splits, teachers, Asking("float32", 4, torch.device("cpu"), 0, Silent())
    )


def test_a_table_a_session_and_a_network_are_one_ensemble(tmp_path: Path) -> None:
    said = outputs()
    assert run(tmp_path, plans(), [table("a", said), session("b", 1), network("c", 1)]) == 6
    for name, rows in LENGTHS.items():
        found = Cache(tmp_path).open(name).read(range(rows))
        assert_array_equal(found[:, 0], said[name])
        assert_allclose(found[:, 1], found[:, 2], atol=1e-5)
        assert np.ptp(found[:, 2], axis=0).min() > 0
    before = contents(tmp_path)
    assert run(tmp_path, plans(), [table("a", said), session("b", 1), network("c", 1)]) == 0
    assert contents(tmp_path) == before


def test_for_a_table_alone_no_row_is_rendered(tmp_path: Path) -> None:
    splits = plans()
    run(tmp_path, splits, [table("a", outputs(0)), table("b", outputs(1))])
    for name, plan in splits.items():
        assert set(plan.source.decoded) <= set(spread(LENGTHS[name], REPLAYED)), "what proves that views are the same"
    assert_array_equal(Cache(tmp_path).open("train").read(range(13))[:, 1], outputs(1)["train"])
    run(tmp_path, plans(), [table("a", outputs(0)), table("b", outputs(1)), network("c", 2)])
    assert Cache(tmp_path).manifest.names == ("a", "b", "c")


def test_a_table_that_says_something_else_now_is_refused(tmp_path: Path) -> None:
    run(tmp_path, plans(), [table("a", outputs(0))])
    with refused_and_kept(tmp_path, "Member a answers row 0 of train otherwise", "a probability differs"):
        run(tmp_path, plans(), [table("a", outputs(1))])


def test_a_session_that_goes_by_the_batch_is_refused(tmp_path: Path) -> None:
    with refused("Member b says a logit", "not a function of its row", "the rest of the batch"):
        run(tmp_path / "cache", plans(), [session("b", 1, mixes=True)])


@pytest.mark.parametrize("other", [table("b", outputs()), session("b", 1)], ids=["table", "session"])
def test_who_gives_no_gradient_says_so_before_the_pass(tmp_path: Path, other: Teacher) -> None:
    with refused("Member b gives no gradient", "'ods'", "views.transform"):
        run(tmp_path / "cache", plans("ods"), [network("a", 0), other])
    assert not (tmp_path / "cache").exists()


def test_who_sees_no_views_answers_plain_rows_alone(tmp_path: Path) -> None:
    with refused("Member b answers row numbers alone", "train", "'noise'", 'views.transform = "none"'):
        run(tmp_path / "cache", plans("noise"), [network("a", 0), table("b", outputs())])
    assert not (tmp_path / "cache").exists()
    run(tmp_path / "cache", plans("noise"), [network("a", 0), session("b", 1)])
