"""What was tried, one idea at a time, and what was chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A training: flags of `edistill train` in addition to edistill.toml, and those that change the cache."""

    name: str
    flags: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The student's architecture, whatever its data and training; entries that share it have the same latency."""
        return " ".join(flag for flag in self.flags if flag.startswith("student."))


SOLVED = ("--epochs", "0")  # only the closed-form solution


def _set(**values: str) -> tuple[str, ...]:
    """`--set key=value` for each keyword; two underscores stand for a dot, one for a dash."""
    return tuple(part for k, v in values.items() for part in ("--set", f"{k.replace('__', '.').replace('_', '-')}={v}"))


def _views(transform: str, count: int = 4, more: str = "") -> tuple[str, ...]:
    cache = "-".join(filter(None, ("cache", transform.replace("+", "-"), str(count), more)))
    return _set(views__transform=transform, views__count=str(count), output__cache=cache)


def _members(count: int) -> str:
    return "[" + ",".join(f'"member-{index:02d}"' for index in range(count)) + "]"


def _stage(rank: int | None, last: str = "2", before: str = "1", percent: float | None = None) -> tuple[str, ...]:
    """Heads that start from the members' own last stages, at `percent` of their parameters, behind adapters of this
    rank."""
    more = "".join(("" if rank is None else f",rank={rank}", "" if percent is None else f",compress={percent / 100:g}"))
    return _set(student__heads=f'{{last-stage="{last}",adapt-from="{before}"{more}}}', student__init=_members(1))


_MIXED, _BODY = _views("affine+mixup"), _set(student__model="student.py:make_body")
_LAYER, _PLAIN = _set(student__model="student.py:make_layer"), ("--epochs", "8", "--lr", "1e-3")
_FREE = _set(student__heads="[100,100]", method__closed_form="false")
_TEN = (*_BODY, *_set(student__init=_members(10)))
_32 = (*_BODY, *_stage(32), "--lr", "1e-3")

MNIST = (
    # the starting point: one body, a Hinton phase, heads that diverge by training alone
    Entry("plain", (*_LAYER, *_FREE, *_PLAIN), _MIXED),
    Entry("plain-closed-form", (*_LAYER, *_set(student__heads="[100,100]"), *_PLAIN), _MIXED),
    # the bodies of ten members side by side, linear heads
    Entry("ten-bodies-solved", (*_TEN, *SOLVED), _MIXED),
    Entry("ten-bodies", (*_TEN, "--lr", "1e-3"), _MIXED),
    # each head is its member's own last stage, behind a shared bottleneck of `rank` channels
    *(Entry(f"rank-{rank}-solved", (*_BODY, *_stage(rank), *SOLVED), _MIXED) for rank in (16, 32, 64, 96, 128)),
    # the limit: as large as the ensemble
    Entry("full-rank-solved", (*_BODY, *_stage(None), *SOLVED), _MIXED),
    # the bottleneck follows one member's own first layer, instead of the pixels
    Entry("one-members-layer-solved", (*_BODY, *_stage(None, "3", "3"), *SOLVED), _MIXED),
    # the same with compressed last stages
    *(
        Entry(f"rank-{rank}-stages-{percent}-solved", (*_BODY, *_stage(rank, percent=percent), *SOLVED), _MIXED)
        for rank, percent in ((80, 65), (80, 49), (80, 33), (96, 49), (128, 49))
    ),
    # training from there
    Entry("rank-96", (*_BODY, *_stage(96), "--lr", "1e-4"), _MIXED),
    Entry("rank-80", (*_BODY, *_stage(80), "--lr", "1e-4"), _MIXED),
    Entry("rank-96-stages-49", (*_BODY, *_stage(96, percent=49), "--lr", "1e-4"), _MIXED),
    Entry("rank-80-stages-49", (*_BODY, *_stage(80, percent=49), "--lr", "1e-4"), _MIXED),
    Entry("rank-32", _32, _MIXED),
    Entry("rank-32-lr-1e-4", (*_32[:-1], "1e-4"), _MIXED),
    # the loss
    Entry("rank-32-t2", (*_32, *_set(method__temperature="2.0")), _MIXED),
    Entry("rank-32-deviation-4", (*_32, *_set(method__loss="deviation", method__deviation_weight="4.0")), _MIXED),
    Entry("rank-32-rows", (*_32, *_set(method__row_weight="0.5")), _MIXED),
    # the views
    *(Entry(f"rank-32-{name.replace('+', '-')}", _32, _views(name)) for name in ("none", "affine", "mixup", "ods")),
    Entry("rank-32-affine-mixup-ods", _32, _views("affine+mixup+ods")),
    Entry("rank-32-one-view", _32, _views("affine+mixup", 1)),
)

_CIFAR10, _CROPPED = _views("crop-flip+mixup"), _views("crop-flip")
_PHOTOS = (*_views("crop-flip", more="photos"), *_set(data__transfer="photos.npz"))


def _bodies(count: int) -> tuple[str, ...]:
    return _set(student__init=_members(count))


_TWO = ("--epochs", "2", "--lr", "1e-3")
_ON = ("--epochs", "2", "--lr", "1e-4", "--channels-last")
_THREE = ("--epochs", "3", "--lr", "2e-4", "--channels-last")


def _stages(bodies: int, rank: int | None) -> tuple[str, ...]:
    """Heads with their members' own last stages, on the earlier stages of `bodies` members side by side."""
    limit = "" if rank is None else f",rank={rank}"
    return (*_bodies(bodies), *_set(student__heads=f'{{last-stage="stages.2"{limit}}}'))


def _compressed(percent: float, count: int | None = None) -> tuple[str, ...]:
    """`count` members, or all, compressed to `percent` of their parameters."""
    init = '["member-*"]' if count is None else _members(count)
    return _set(student__init=init, student__compress=f"{percent / 100:g}")


CIFAR10 = (
    # bodies of several members side by side, linear heads
    *(Entry(f"bodies-{count}-solved", (*_bodies(count), *SOLVED), _CIFAR10) for count in (3, 5)),
    # each head its member's own last stage
    *(
        Entry(f"stages-{bodies}-rank-{rank}-solved", (*_stages(bodies, rank), *SOLVED), _CIFAR10)
        for bodies, rank in ((1, 96), (2, 96), (3, 96))
    ),
    Entry("stages-3-solved", (*_stages(3, None), *SOLVED), _CIFAR10),
    # training from there
    Entry("stages-1-rank-96", (*_stages(1, 96), *_TWO), _CIFAR10),
    Entry("bodies-3", (*_bodies(3), *_TWO), _CIFAR10),
    Entry("stages-3-rank-96", (*_stages(3, 96), *_TWO), _CIFAR10),
    Entry("bodies-5", (*_bodies(5), *_TWO), _CIFAR10),
    # the starting point: one body from a member, a Hinton phase
    Entry("plain", (*_set(student__init="member-00", method__closed_form="false"), *_TWO), _CIFAR10),
    # all ten members compressed, each head on its own body
    Entry("compressed-34-solved", (*_compressed(34.4), *SOLVED), _CROPPED),
    # training from there
    Entry("compressed-34", (*_compressed(34.4), *_ON), _CROPPED),
    # with views moved to where members differ more
    Entry("compressed-34-ods", (*_compressed(34.4), *_ON), _views("crop-flip+ods")),
    # with transfer rows: patches of photographs, on which members give other outputs
    Entry("compressed-345-photos", (*_compressed(34.5), *_THREE), _PHOTOS),
    # seven members, compressed less, with heads on all of them
    Entry("compressed-42-seven", (*_compressed(42, 7), *_ON), _CROPPED),
)

SEARCH = {"mnist": MNIST, "cifar10": CIFAR10}
FINAL = {
    "mnist": ("rank-96", "rank-80", "rank-96-stages-49", "rank-80-stages-49"),
    "cifar10": ("bodies-5", "compressed-42-seven", "compressed-345-photos"),
}
