"""Inputs along the members' gradients are stored, and are what everybody is shown; what has none is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from ods_helpers import (
    ODS,
    TO,
    affine_of,
    by_hand,
    facts,
    forked,
    make_cache,
    member,
    plan_of,
    run,
    small_blocks,
    stored,
)
from tiny import CLASSES, SIDE, contents, killed_at, linear, refused, save_member, settings
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import InputKey
from ensemble_distill.data.rendering import normalize
from ensemble_distill.data.source import Kind
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.order import Order, Steps
from ensemble_distill.training.rows import CachedRows, CachedSplit, collate
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_cache(tmp_path)


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


@pytest.mark.thorough
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
        probes = len(witness.seen) // 2 - 12  # of either pass, before its batches of five rows
        shown = iter(witness.seen[probes:])
        rows = CachedRows(splits, to)
        for offset, plan in ((0, plans["train"]), (14, plans["transfer"])):
            for start in range(0, len(plan.source), 5):
                for view in range(2):
                    for row, x in enumerate(next(shown), start):
                        assert_array_equal(rows[offset + row, view].x, x)
            next(shown)  # rows that are asked about again
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
    assert set(manifest.pushed) == {InputKey("train", 0), InputKey("train", 1)}
    assert manifest.splits["validation"].transform == "none"
    cache_logits(settings(folder, {"views.transform": "none", "output.cache": "plain"}))
    for which in ("member-0", "member-1"):
        name = f"records/validation/{which}.v0.npy"
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
