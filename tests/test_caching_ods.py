"""Views along the members' gradients: the inputs are what ODS says, are stored, and are what everybody is shown."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import stats
from tiny import (
    CLASSES,
    SIDE,
    contents,
    examples,
    killed_at,
    linear,
    make_folder,
    member_state,
    refused,
    rows_asked,
    save_member,
    settings,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ensemble_distill.cache import writer
from ensemble_distill.cache.inputs import Inputs, open_inputs
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.caching.gradient import moved
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.caching.plan import SplitPlan
from ensemble_distill.config import Settings
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.push import Push
from ensemble_distill.data.rendering import normalize
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.order import Order, Steps
from ensemble_distill.training.rows import CachedRows, CachedSplit, collate
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify

TO = Preprocessing((SIDE, SIDE), (0.5,), (0.5,))
ODS = {"views.transform": "crop-flip+mixup+ods"}
CPU = torch.device("cpu")
forked = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)  # of the 40 training rows: 16, 16 and 8
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with its cache, made without interruption."""
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    cache_logits(settings(folder, ODS))
    return folder


@pytest.fixture
def again(folder: Path) -> Settings:
    return settings(folder, {**ODS, "output.cache": "again"})


def facts(cache: Path) -> dict[str, bytes]:
    return contents(cache, ["args.toml", "args.toml.part"])


def stored(cache: Path, views: int, split: str = "train") -> Inputs:
    inputs = open_inputs(cache, Manifest.load(cache), split, range(views))
    assert inputs is not None
    return inputs


# --- what ODS says ----------------------------------------------------------------------------------------------


def softmax(z: Array) -> Array:
    p: Array = np.exp(z - z.max())
    return p / p.sum()


def by_hand(x: Array, a: Array, b: Array, w: Array, to: Preprocessing | None, confident: bool, clamp: bool) -> Array:
    """x of a member softmax(A n + b) with n = (x − mean) ÷ std: the gradient is Aᵀ(p ∘ (w − w·p)) ÷ std."""
    mean, std = (0.0, 1.0) if to is None else (to.mean[0], to.std[0])
    p = softmax(a @ ((x.ravel() - mean) / std) + b)
    g = a.T @ (p * (w - w @ p)) / std
    there = x.ravel() + (1 / 255) * (p.max() if confident else 1) * np.sqrt(x.size) * g / np.sqrt(g @ g)
    return (there.clip(0, 1) if clamp else there).reshape(x.shape)


def affine_of(seed: int) -> tuple[Array, Array]:
    state = member_state(seed)
    return state["2.weight"].double().numpy(), state["2.bias"].double().numpy()


def inputs_of(rows: int) -> NDArray[np.float32]:
    """Unlike any pixels, with black and white ones that are not to leave [0, 1]."""
    x = np.random.default_rng(3).uniform(-0.3, 1.3, (rows, 1, SIDE, SIDE)).clip(0, 1)
    return x.astype(np.float32)


class Permuted(nn.Module):
    def __init__(self, module: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.module, self.order = module, list(order)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[:, self.order]  # type: ignore[no-any-return]


def members_and_modules(kind: Kind) -> tuple[list[Member], dict[str, nn.Module]]:
    """Equal in what they are of: logits, probabilities, logits in another class order; other means and deviations."""
    first, second = TO, replace(TO, mean=(0.2,), std=(0.3,))
    if kind == "tensor":
        first = second = None  # type: ignore[assignment]
    members = [
        Member("a", "a", preprocessing=first),
        Member("b", "b", output="probabilities", preprocessing=second),
        Member("c", "c", class_order=(2, 0, 1), preprocessing=second),
    ]
    modules = [linear(0), nn.Sequential(linear(1), nn.Softmax(1)), Permuted(linear(2), (2, 0, 1))]
    return members, {member.name: module for member, module in zip(members, modules, strict=True)}


@pytest.mark.parametrize("spec", ["ods", "confods"])
@pytest.mark.parametrize("kind", ["pixels", "tensor"])
def test_inputs_move_as_the_closed_form_of_linear_members_says(spec: str, kind: Kind) -> None:
    members, modules = members_and_modules(kind)
    x = inputs_of(30) if kind == "pixels" else 3 * inputs_of(30) - 1
    pushes: list[Push] = [open_view(spec).plan(4, 1, row, 30).push for row in range(30)]  # type: ignore[attr-defined]
    found = moved(x, pushes, kind, members, modules, CPU, "train", range(30))
    asked = [push.member(3) for push in pushes]
    assert set(asked) == {0, 1, 2}
    for row, (push, index) in enumerate(zip(pushes, asked, strict=True)):
        w, to = push.weights(CLASSES), members[index].preprocessing
        expected = by_hand(x[row].astype(np.float64), *affine_of(index), w, to, spec == "confods", kind == "pixels")
        assert_allclose(found[row], expected, atol=2e-6)
    assert found.dtype == np.float32
    if kind == "pixels":
        assert 0 <= found.min() <= found.max() <= 1
    elif spec == "ods":
        assert_allclose(np.sqrt(((found - x).astype(np.float64) ** 2).mean((1, 2, 3))), 1 / 255, rtol=1e-4)


def test_channels_move_by_their_own_deviations() -> None:
    to = Preprocessing((4, 5), (0.4, 0.5, 0.6), (0.1, 0.2, 0.4))
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(CLASSES, 60)), rng.uniform(0.2, 0.8, (6, 3, 4, 5)).astype(np.float32)
    module = nn.Sequential(nn.Flatten(), nn.Linear(60, CLASSES, bias=False))
    module.load_state_dict({"1.weight": torch.tensor(a, dtype=torch.float32)})
    push = [Push(("ods", 0, 0, row), 1 / 255, False) for row in range(6)]
    found = moved(x, push, "pixels", [Member("a", "a", preprocessing=to)], {"a": module}, CPU, "train", range(6))
    std = np.repeat(to.std, 20)
    for row in range(6):
        p, w = softmax(a @ ((x[row].ravel() - np.repeat(to.mean, 20)) / std)), push[row].weights(CLASSES)
        g = a.T @ (p * (w - w @ p)) / std
        assert_allclose(found[row].ravel() - x[row].ravel(), np.sqrt(60) / 255 * g / np.sqrt(g @ g), atol=1e-6)


def test_a_row_moves_alike_whatever_the_batch() -> None:
    members, modules = members_and_modules("pixels")
    x = inputs_of(12)
    pushes: list[Any] = [open_view("ods").plan(0, 0, row, 12).push for row in range(12)]  # type: ignore[attr-defined]
    together = moved(x, pushes, "pixels", members, modules, CPU, "train", range(12))
    order = [5, 0, 11, 7]
    some = moved(x[order], [pushes[i] for i in order], "pixels", members, modules, CPU, "train", order)
    assert_allclose(some, together[order], atol=1e-6)
    assert_array_equal(x, inputs_of(12))


def test_a_member_that_is_sure_still_gives_a_direction() -> None:
    """Its softmax is 1 in single precision, and all derivatives are 0."""
    sure = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    state = {name.replace("2.", "1."): 40 * value for name, value in member_state(0).items()}
    sure.load_state_dict(state)
    x = inputs_of(8)
    a, b = (40 * part for part in affine_of(0))
    push = [Push(("ods", 0, 0, row), 1 / 255, False) for row in range(8)]
    found = moved(x, push, "pixels", [Member("a", "a", preprocessing=TO)], {"a": sure.eval()}, CPU, "train", range(8))
    assert max(softmax(a @ (2 * row.ravel().astype(np.float64) - 1) + b).max() for row in x) == 1
    for row in range(8):
        z = a @ (2 * x[row].ravel().astype(np.float64) - 1) + b
        p, w = softmax(z), push[row].weights(CLASSES)
        top = int(z.argmax())
        slope = np.array([p[k] * sum(p[j] * (w[k] - w[j]) for j in range(CLASSES) if j != k) for k in range(CLASSES)])
        assert slope[top] != 0
        g = a.T @ (slope / np.abs(slope).max())
        expected = (x[row].ravel() + SIDE / 255 * g / np.sqrt(g @ g)).clip(0, 1)
        assert_allclose(found[row].ravel(), expected, atol=1e-5)


def test_an_input_without_a_gradient_stays() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    nn.init.zeros_(flat[1].weight)  # type: ignore[arg-type]
    x = inputs_of(3)
    push = [Push(("ods", 0, 0, row), 1 / 255, False) for row in range(3)]
    member = [Member("a", "a", preprocessing=TO)]
    assert_array_equal(moved(x, push, "pixels", member, {"a": flat}, CPU, "train", range(3)), x)


def test_draws_are_uniform_and_each_their_own() -> None:
    plans: list[Any] = [open_view("mixup+ods").plan(0, 0, row, 3000) for row in range(3000)]
    pushes = [plan.push for plan in plans]
    assert stats.chisquare(np.bincount([push.member(5) for push in pushes])).pvalue > 1e-3
    weights = np.stack([push.weights(20) for push in pushes[:300]])
    assert stats.kstest(weights.ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert len(np.unique(weights)) == weights.size
    assert not np.array_equal(pushes[0].weights(20), open_view("confods").plan(0, 0, 0, 9).push.weights(20))  # type: ignore[attr-defined]
    mixes = [replace(plan, push=None) for plan in plans[:50]]
    assert mixes == [open_view("mixup").plan(0, 0, row, 3000) for row in range(50)], "the rest is as without it"


# --- what is stored, and who is shown it ------------------------------------------------------------------------


class Witness(nn.Module):
    """A member that remembers what it is shown."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.module = linear(seed)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self.seen.append(x.clone())
        return self.module(x)  # type: ignore[no-any-return]


def run(cache: Path, plans: dict[str, SplitPlan], teachers: list[Teacher], workers: int = 0) -> int:
    return cache_outputs(
        cache,
        "classification",
        plans,
        teachers,
        dtype="float32",
        batch_size=5,
        device=CPU,
        workers=workers,
        progress=Silent(),
    )


def plan_of(spec: str, rows: int = 14, kind: Kind = "pixels", seed: int = 0, labels: bool = True) -> SplitPlan:
    x, y = examples(rows, seed)
    data: Array = x[..., None] if kind == "pixels" else (x[:, None] / np.float32(50) - 2).astype(np.float32)
    return SplitPlan(Arrays(data, y if labels else None, kind), open_view(spec), spec, 11, 2)


@forked
@pytest.mark.parametrize("kind", ["pixels", "tensor"])
def test_members_and_student_are_shown_the_stored_inputs_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    plans = {
        "train": plan_of("crop-flip+mixup+ods", 14, kind),
        "transfer": plan_of("crop-flip+mixup+ods", 7, kind, 1, False),
    }
    tos = (TO, replace(TO, mean=(0.2,), std=(0.3,))) if kind == "pixels" else (None, None)
    witnesses = [Witness(0), Witness(1)]
    teachers = [
        Teacher(Member(name, name, preprocessing=to), lambda module=module: module)  # type: ignore[misc]
        for name, to, module in zip("ab", tos, witnesses, strict=True)
    ]
    run(tmp_path / "cache", plans, teachers)
    run(tmp_path / "workers", plans, teachers, workers=2)
    assert contents(tmp_path / "workers") == contents(tmp_path / "cache")

    cache = Cache(tmp_path / "cache")
    splits = [
        CachedSplit(p.source, p.view, p.seed, cache.open(name, 2), stored(cache.folder, 2, name))
        for name, p in plans.items()
    ]
    for witness, to in zip(witnesses, tos, strict=True):
        shown = iter(witness.seen[2:])  # the first ones are probes
        rows = CachedRows(splits, to)
        for offset, plan in ((0, plans["train"]), (14, plans["transfer"])):
            for start in range(0, len(plan.source), 5):
                for view in range(2):
                    for row, x in enumerate(next(shown), start):
                        assert_array_equal(rows[offset + row, view].x, x)
    order = Order(21, 2, 3, seed=5)
    rows = CachedRows(splits, tos[0])
    for workers in (0, 2):
        seen = set()
        for batch in DataLoader(rows, batch_sampler=Steps(order, 0, 14), collate_fn=collate, num_workers=workers):
            for (row, view), x in zip(batch.indices.tolist(), batch.x, strict=True):
                assert_array_equal(x, rows[row, view].x)
                seen.add((row, view))
        assert len(seen) == 42


def test_outputs_are_of_the_stored_inputs_and_labels_of_the_plan(tmp_path: Path) -> None:
    plan = plan_of("mixup+ods")
    run(tmp_path, {"train": plan}, [Teacher(Member("a", "a", preprocessing=TO), lambda: linear(0))])
    cache, inputs = Cache(tmp_path), stored(tmp_path, 2)
    records = cache.open("train", 2)
    rows = CachedRows([CachedSplit(plan.source, plan.view, plan.seed, records, inputs)], TO)
    a, b = affine_of(0)
    for row, view in itertools.product(range(14), range(2)):
        x = inputs.read(row, view)
        assert_array_equal(np.rint(255 * x), 255 * x, strict=False)
        assert_allclose(records.read([row], view)[0, 0], a @ normalize(x, TO).ravel() + b, atol=1e-4)
        drawn: Any = plan.view.plan(plan.seed, view, row, 14)
        items = [plan.source.item(other) for other in drawn.rows]
        own, partner, weight = drawn.y(items)
        example = rows[row, view]
        assert (example.own, example.partner, example.weight, example.known) == (own, partner, weight, True)
        plain = drawn.x(items, replace(TO, mean=(0.0,), std=(1.0,))).astype(np.float64)
        expected = by_hand(plain, a, b, drawn.push.weights(CLASSES), TO, False, True)
        assert np.abs(255 * (x - expected)).max() <= 0.5 + 1e-3
    assert np.abs(255 * x - 255 * plain).max() > 1


def test_only_rows_that_are_trained_on_move(folder: Path) -> None:
    manifest = Manifest.load(folder / "cache")
    assert set(manifest.pushed) == {"train/0", "train/1"}
    assert manifest.splits["validation"].transform == "none"
    cache_logits(settings(folder, {"views.transform": "none", "output.cache": "plain"}))
    for member in ("member-0", "member-1"):
        name = f"records/validation/{member}.v0.npy"
        assert (folder / "cache" / name).read_bytes() == (folder / "plain" / name).read_bytes()


def test_a_student_trains_on_them_and_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = train(settings(folder, ODS))
    before = (report.folder / "student.safetensors").read_bytes()
    with killed_at(12, monkeypatch, folder / "runs") as happened:
        train(settings(folder, ODS), overwrite=True)
    assert happened
    train(settings(folder, ODS))
    assert (report.folder / "student.safetensors").read_bytes() == before
    train(settings(folder, {**ODS, "train.method": "supervised", "train.epochs": 1}))


# --- crashes and extensions -------------------------------------------------------------------------------------


def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, bytes]] = []
    for point in itertools.count():
        shutil.rmtree(folder / "again", ignore_errors=True)
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cache_logits(again)
        if not happened:
            break
        if contents(folder / "again") in found:
            continue
        found.append(contents(folder / "again"))
        cache_logits(again)
        assert facts(folder / "again") == facts(folder / "cache"), f"after a crash at point {point}"
    # the manifest; samples, who is asked, blocks, inputs, manifest; blocks, records, manifest; validation; the settings
    assert point == 4 * (1 + (1 + 1 + 3 + 2 + 1) + (3 + 4 + 1) + (1 + 1 + 2 + 1) + 1)


def test_crashes_in_a_row_go_on_to_the_same_bytes(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crashes in itertools.count():
        with killed_at(2 * 4 + 2 * crashes, monkeypatch, folder / "again") as happened:
            cache_logits(again)
        if not happened:
            break
    assert crashes >= 8
    assert facts(folder / "again") == facts(folder / "cache")


def test_a_new_member_only_labels_what_is_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: content for name, content in facts(folder / "cache").items() if name.endswith(".npy")}
    save_member(folder, 7)
    asked = rows_asked(monkeypatch)
    cache_logits(settings(folder, ODS))
    assert asked == {"member-7": 2 * 40 + 6}
    assert facts(folder / "cache").items() >= old.items()
    inputs, records = stored(folder / "cache", 2), Cache(folder / "cache").open("train", 2)
    a, b = affine_of(7)
    for row in (0, 17, 39):
        z = a @ (2 * inputs.read(row, 1).ravel().astype(np.float64) - 1) + b
        assert_allclose(records.read([row], 1)[0, 2], z, atol=2e-2)  # float16
    cache_logits(settings(folder, {**ODS, "views.count": 3}))
    pushed = Manifest.load(folder / "cache").pushed
    assert [len(pushed[f"train/{view}"].members) for view in range(3)] == [2, 2, 3], "a new view asks all there are"
    assert facts(folder / "cache").items() >= old.items()
    train(settings(folder, {**ODS, "views.count": 3, "train.epochs": 1}))


def test_an_extension_killed_at_any_point_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_member(folder, 7)
    extended = settings(folder, {**ODS, "views.count": 3, "output.cache": "again"})
    whole: dict[str, bytes] = {}
    for point in itertools.chain([10_000], itertools.count(0, 5)):
        shutil.rmtree(folder / "again", ignore_errors=True)
        shutil.copytree(folder / "cache", folder / "again")
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cache_logits(extended)
        if not whole:
            whole = facts(folder / "again")
            continue
        cache_logits(extended)
        assert facts(folder / "again") == whole, f"after a crash at point {point}"
        if not happened:
            break


@pytest.mark.parametrize("point", [4 * 4, 4 * 7, 4 * 11], ids=["inputs", "no outputs", "some outputs"])
def test_a_member_that_comes_in_the_middle_of_a_pass_is_not_asked(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    with killed_at(point, monkeypatch, folder / "again") as happened:
        cache_logits(again)
    assert happened
    save_member(folder, 7)
    cache_logits(again)
    name = "records/inputs/train/x.v0.npy"
    assert (folder / "again" / name).read_bytes() == (folder / "cache" / name).read_bytes()
    cache_logits(settings(folder, ODS))
    assert facts(folder / "again") == facts(folder / "cache")


def test_a_pass_goes_on_rendering_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the members are in the order of their names, and the newcomer's crop is another."""
    plan = plan_of("ods", 40)
    cropped = Member("a", "a", preprocessing=replace(TO, crop_pct=0.7, mean=(0.1,)))
    newcomer = Teacher(cropped, lambda: linear(1))
    run(tmp_path / "whole", {"train": plan}, [member("b")])
    with killed_at(4 * 4 + 1, monkeypatch, tmp_path) as happened:
        run(tmp_path / "cache", {"train": plan}, [member("b")])
    assert happened
    assert any((tmp_path / "cache/parts/inputs/train").iterdir())
    for cache in ("whole", "cache"):
        run(tmp_path / cache, {"train": plan}, [newcomer, member("b")])
    for view in range(2):
        name = f"records/inputs/train/x.v{view}.npy"
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run(tmp_path / "other", {"train": plan}, [newcomer, member("b")])
    assert (tmp_path / "other" / name).read_bytes() != (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("point", [4 * 4, 4 * 8, 4 * 11], ids=["inputs", "no outputs", "some outputs"])
@pytest.mark.parametrize(
    "change",
    [{"cache.batch-size": 2}, {"views.seed": 3}, {"views.transform": "confods"}, {"views.transform": "mixup"}, {}],
    ids=str,
)
def test_before_any_output_is_complete_anything_may_change(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, point: int, change: dict[str, Any]
) -> None:
    """The last one takes a member away that had been asked."""
    with killed_at(point, monkeypatch, folder / "again") as happened:
        cache_logits(again)
    assert happened
    if not change:
        (folder / "teachers/member-0.safetensors").unlink()
    cache_logits(settings(folder, {**ODS, **change, "output.cache": "again"}))
    cache_logits(settings(folder, {**ODS, **change, "output.cache": "whole"}))
    assert facts(folder / "again") == facts(folder / "whole")


# --- damage -----------------------------------------------------------------------------------------------------


def test_damaged_inputs_are_found_and_made_again(folder: Path) -> None:
    before = facts(folder / "cache")
    file = folder / "cache/records/inputs/train/x.v1.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert verify(folder / "cache").problems[0].startswith(str(file))
    damaged = (f"{file} is damaged: its sha256 is", "Delete that file and run edistill cache-logits")
    with refused(*damaged):
        train(settings(folder, ODS))
    file.rename(file.with_suffix(".away"))
    with refused(f"{file} is missing", "Run edistill cache-logits"):
        train(settings(folder, ODS))
    file.with_suffix(".away").rename(file)
    added = save_member(folder, 7)
    with refused(*damaged):
        cache_logits(settings(folder, ODS))
    added.unlink()
    file.unlink()
    assert cache_logits(settings(folder, ODS)).added == 3, "with what the members said of them"
    assert facts(folder / "cache") == before


def test_inspect_tells_who_was_asked(folder: Path) -> None:
    pushed = inspect(folder / "cache")["pushed"]["train/1"]
    assert [name for name, _ in pushed["members"]] == ["member-0", "member-1"]
    assert (pushed["shape"], pushed["dtype"]) == ((1, SIDE, SIDE), "uint8")


# --- refusals ---------------------------------------------------------------------------------------------------


def member(name: str, side: int = SIDE, module: Callable[[], nn.Module] = lambda: linear(0)) -> Teacher:
    return Teacher(Member(name, name, preprocessing=Preprocessing((side, side), (0.5,), (0.5,))), module)


def test_members_of_other_sizes_are_refused(tmp_path: Path) -> None:
    with refused("Member a takes train as (1, 6, 6), and b as (1, 8, 8)", "remove those of another size"):
        run(tmp_path / "cache", {"train": plan_of("ods")}, [member("a"), member("b", 8)])
    assert not (tmp_path / "cache").exists()
    run(tmp_path / "cache", {"train": plan_of("ods")}, [member("b")])
    before = contents(tmp_path / "cache")
    with refused("Member a takes train as (1, 8, 8), and b as (1, 6, 6)"):
        run(tmp_path / "cache", {"train": plan_of("ods")}, [member("a", 8), member("b")])
    assert contents(tmp_path / "cache") == before


@pytest.mark.parametrize("what", ["detached", "numpy", "nan"])
def test_members_without_a_gradient_are_refused(tmp_path: Path, what: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = linear(0)(x)
            if what == "detached":
                return z.detach()
            if what == "numpy":
                return torch.from_numpy(z.numpy())
            return z + 0 * torch.sqrt(x.flatten(1).sum(1, keepdim=True) * 0)

    said = {
        "detached": ("Member m gives no gradient at row 0 of train", "no .detach()"),
        "numpy": ("Member m gives no gradient at row 0 of train", "Can't call numpy()"),
        "nan": ("Member m returns", "at row 0 of train: not finite"),
    }[what]
    with refused(*said):
        run(tmp_path, {"train": plan_of("ods")}, [member("m", module=Odd)])


def test_what_has_no_classes_or_no_range_is_refused(tmp_path: Path) -> None:
    from tiny_regression import make_folder as make_numbers

    with refused("views.transform is 'ods', which moves inputs along the gradients of probabilities", "regression"):
        cache_logits(settings(make_numbers(tmp_path / "numbers"), {"views.transform": "ods"}))


def test_a_student_of_another_size_is_refused(folder: Path) -> None:
    with refused("stores inputs of size [6, 6] and 1 channels", "the student takes [8, 8] and 1"):
        train(settings(folder, {**ODS, "student.preprocessing": {"size": [8, 8]}}))
    train(settings(folder, {**ODS, "student.preprocessing": {"mean": [0.4]}, "train.epochs": 1}))


def test_code_that_changed_between_pushing_and_not_is_refused(tmp_path: Path) -> None:
    run(tmp_path, {"train": plan_of("ods")}, [member("m")])
    other = replace(plan_of("mixup"), transform="ods")
    with refused("has inputs of train moved along gradients", "'ods' moves them not along gradients"):
        run(tmp_path, {"train": other}, [member("m")])


def test_two_pushes_are_refused() -> None:
    with refused("'ods+confods', but confods and ods both move the input along a gradient. Keep one."):
        open_view("ods+confods")


def test_a_users_view_may_push(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from ensemble_distill.data.views import open_view\ndef make():\n    return open_view('ods')\n")
    plan = replace(plan_of("ods"), view=open_view(f"{file}:make"), transform="mine.py:make")
    run(tmp_path / "mine", {"train": plan}, [member("m")])
    run(tmp_path / "ods", {"train": plan_of("ods")}, [member("m")])
    name = "records/inputs/train/x.v1.npy"
    assert (tmp_path / "mine" / name).read_bytes() == (tmp_path / "ods" / name).read_bytes()
