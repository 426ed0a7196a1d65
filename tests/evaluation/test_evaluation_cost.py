"""What a prediction costs, for layers whose arithmetic is known."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from configs import configured, members
from torch import Tensor, nn
from trusted import EVERYTHING

from ensemble_distill.evaluation import cost as evaluation_cost
from ensemble_distill.evaluation.cost import batch_of, cost, costs
from ensemble_distill.predictive import open_family
from ensemble_distill.runs.run import Run
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student

CLASSES = open_family("categorical")


class Attention(nn.Module):
    """Torch's own attention, which has fused kernels in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(1, 10, 4, 4).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)


class Applied(nn.Module):
    """A product that no layer makes, of the first row (6,) and weights."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.product, self.weight = product, nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x[0], self.weight)


class Bilinear(nn.Module):
    """Torch's own, of two parts of each position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x[..., :4], x[..., 4:7])
        return out


SEQUENCE = (10, 16)  # positions, features
ATTENTION = 2 * 10 * 10 * 16  # scores, and their sums
PROJECTIONS = 10 * 16 * 16 * 4


@pytest.mark.parametrize(
    ("module", "shape", "parameters", "macs"),
    [
        (nn.Linear(20, 30), (20,), 20 * 30 + 30, 20 * 30),
        (nn.Conv2d(3, 8, 5, padding=2, stride=2), (3, 16, 16), 8 * 3 * 25 + 8, 8 * 3 * 25 * 8 * 8),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 8, 8), 4 * 9, 4 * 9 * 6 * 6),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (6,), 35 + 10 + 12, 30 + 10),
        (Heads(7, 6, (5,), 3), (6,), 7 * (6 * 5 + 5 + 5 * 3 + 3), 7 * (6 * 5 + 5 * 3)),
        (Student(nn.Linear(6, 4), Heads(7, 4, (), 3), CLASSES), (6,), 28 + 7 * 15, 24 + 7 * 12),
        (Products(), SEQUENCE, 0, ATTENTION),
        (Attention(), SEQUENCE, 4 * (16 * 16 + 16), PROJECTIONS + ATTENTION),
        (
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
            SEQUENCE,
            4 * (16 * 16 + 16) + 2 * 16 * 32 + 48 + 4 * 16,
            PROJECTIONS + ATTENTION + 2 * 10 * 16 * 32,
        ),
        (nn.LSTM(16, 8, batch_first=True), SEQUENCE, 4 * 8 * (16 + 8 + 2), 10 * 4 * 8 * (16 + 8)),
        (Bilinear(), SEQUENCE, 2 * 4 * 3 + 2, 10 * 2 * 4 * 3),
        (Applied(lambda x, w: w @ x, 5, 6), (6,), 30, 30),
        (Applied(lambda x, w: torch.addmv(w.sum(1), w, x), 5, 6), (6,), 30, 30),
        (Applied(torch.dot, 6), (6,), 6, 6),
        (Applied(torch.cdist, 5, 6), (3, 6), 30, 3 * 5 * 6),
        (Applied(torch.cdist, 40, 6), (3, 6), 240, 3 * 40 * 6),
        (Applied(torch.vdot, 6), (6,), 6, 6),
        (Applied(lambda x, w: torch.addbmm(x.new_zeros(4), x.expand(3, 2, 6), w), 3, 6, 4), (6,), 72, 3 * 2 * 6 * 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_parameters_and_macs_of_known_layers(
    module: nn.Module, shape: tuple[int, ...], parameters: int, macs: int
) -> None:
    figures = cost([module.eval()], [torch.zeros(1, *shape)])
    assert figures.parameters == parameters
    assert figures.macs == macs
    assert figures.latency_ms > 0


def test_an_ensembles_cost_is_its_members_sum() -> None:
    members = [nn.Linear(20, 30).eval(), nn.Conv2d(3, 8, 5).eval()]
    inputs = [torch.zeros(1, 20), torch.zeros(1, 3, 9, 9)]
    together, each = cost(members, inputs), [cost([m], [x]) for m, x in zip(members, inputs, strict=True)]
    for name in ("parameters", "macs"):
        assert getattr(together, name) == sum(getattr(of, name) for of in each)
    with pytest.raises(ValueError, match="shorter"):
        cost(members, inputs[:1])


def test_tied_weights_count_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    assert cost([nn.Sequential(first, second)], [torch.zeros(1, 6)]).parameters == 36 + 12


def test_measuring_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def state() -> Iterator[object]:
        yield torch.backends.mha.get_fastpath_enabled()
        yield torch.backends.mkldnn.enabled
        yield torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]

    before = list(state())
    cost([nn.Linear(2, 2)], [torch.zeros(1, 2)])
    assert list(state()) == before

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cost([Fails()], [torch.zeros(1, 2)])
    assert list(state()) == before
    assert threads == [1, 3, 1, 3]


def test_latency_grows_with_the_work() -> None:
    def latency(width: int) -> float:
        return cost([nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))], [torch.zeros(1, width)]).latency_ms

    assert latency(1500) > 3 * latency(4)


def test_a_members_cost_is_its_share_of_the_ensembles() -> None:
    members = [nn.Linear(20, 30).eval(), nn.Linear(20, 50).eval(), nn.Linear(20, 11).eval()]
    whole = cost(members, [torch.zeros(1, 20)] * 3)
    found = whole.of_one(3)
    assert whole.macs is not None
    assert found["macs"] == pytest.approx(whole.macs / 3)
    assert found["parameters"] == pytest.approx(21 * 91 / 3)
    assert found["latency_ms"] == whole.alone_ms / 3
    alike = cost(members[:1] * 2, [torch.zeros(1, 20)] * 2).of_one(2)
    assert isinstance(alike["parameters"], int), "as the members' own"


class Layers(nn.Sequential):
    def __init__(self, width: int = 20) -> None:
        super().__init__(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 5))
        self.eval()


class Otherwise(Layers):
    """What no weight says."""

    turned = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return -out if self.turned else out


def turned() -> nn.Module:
    module = Otherwise()
    module.turned = True
    return module


X = torch.ones(1, 20)


@pytest.mark.parametrize(
    ("modules", "inputs", "batched"),
    [
        ([Layers() for _ in range(6)], [X] * 6, True),
        ([Layers(), Layers(21)], [X] * 2, False),
        ([Layers(), Layers()], [X, 2 * X], False),
        ([Otherwise(), turned()], [X] * 2, False),
        ([nn.LSTM(20, 5).eval() for _ in range(2)], [X] * 2, False),
        ([Layers()], [X], False),
    ],
    ids=["alike", "another width", "another input", "another code", "no layer for it", "alone"],
)
def test_members_run_in_one_batch_where_that_says_the_same(
    modules: list[nn.Module], inputs: list[Tensor], batched: bool
) -> None:
    found = batch_of(modules, inputs)
    assert len(found) == batched
    for together, rows in found:
        apart = torch.cat([module(x) for module, x in zip(modules, inputs, strict=True)])
        torch.testing.assert_close(together[0](rows[0]), apart)


def test_the_latency_is_that_of_the_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [Layers() for _ in range(6)]
    for of_loop, of_batch in ((6.0, 2.0), (6.0, 9.0)):

        def timed(given: list[nn.Module], _: list[Tensor], loop: float = of_loop, batch: float = of_batch) -> float:
            return loop if len(given) == 6 else 0.5 if given[0] in modules else batch

        monkeypatch.setattr(evaluation_cost, "_timed", timed)
        found = cost(modules, [X] * 6)
        assert (found.latency_ms, found.alone_ms) == (min(of_loop, of_batch), 6 * 0.5)
        assert found.of_one(6)["latency_ms"] == 0.5, "of a member by itself, not of one among others"
        assert found.macs == 6 * (20 * 20 + 20 * 5)


def test_the_shortest_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([5.0, 3.0, 4.0] + [9.0] * 27)
    monkeypatch.setattr(evaluation_cost, "_timed", lambda *_: next(taken))
    assert cost([Layers()], [X], budget=100).latency_ms == 3.0


def test_models_are_timed_in_turn() -> None:
    order: list[str] = []

    class Told(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.name)
            return x

    found = costs([([Told("a")], [torch.zeros(1, 2)]), ([Told("b"), Told("c")], [torch.zeros(1, 2), torch.ones(1, 2)])])
    assert len(found) == 2
    assert order[:3] == ["a", "b", "c"], "they are counted first"
    alone, in_turn = ["a", "a", "b", "b", "c", "c"], ["b", "c", "b", "c"]  # each once so that it is at hand
    assert order[3:23] == (alone + in_turn) * 2
    assert costs([]) == []


def test_a_student_of_some_heads_has_their_bodies_with_their_ranks(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5))\n"
    )
    config = configured(
        **{"model": "model.py:make", "kwargs": {}, "hidden": (), "heads": 3, "members": members(3)},
        **{"bodies": 3, "own_body": True, "compressed": tuple({"1": rank} for rank in (1, 2, 3))},
        weights=(1.0, 2.0, 3.0),
    )
    student = Run(tmp_path, config, "0" * 64).with_heads([2, 0], EVERYTHING)
    assert [body[1].reduce.out_features for body in student.body.bodies] == [3, 1]
    assert (student.heads.count, student.weights) == (2, None)
