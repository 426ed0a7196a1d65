"""Replay: training sees the inputs that the members saw, whatever the workers, the order, the rank or the process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from tiny import contents, examples, killed_at, linear, make_folder, refused, save_member, settings
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.records import Records
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.caching.replay import ROWS, VIEWS, _tolerance, check_samples, keep_samples
from ensemble_distill.data import rendition
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.image_folder import ImageFolder
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.source import Array, Kind, Source
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing, Several
from ensemble_distill.facts.several import Part
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.ranks import Rank
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.order import Index, Order, Steps
from ensemble_distill.training.rows import CachedRows, CachedSplit, TeacherOutputs, collate
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

TO = Preprocessing((8, 8), (0.4,), (0.3,), interpolation="bicubic", crop_pct=0.9)
VIEW_COUNT, SEED, BATCH = 3, 11, 5
Hashes = dict[Index, str]

forked = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def hashed(x: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def source(kind: Kind, rows: int, seed: int) -> Source:
    rng = np.random.default_rng(seed)
    if kind == "pixels":
        x: Array = rng.integers(0, 256, (rows, 6, 6, 1), dtype=np.uint8)
    elif kind == "tensor":
        x = rng.normal(size=(rows, 1, 6, 6)).astype(np.float32)
    else:
        x = rng.normal(size=(rows, 36)).astype(np.float32)
    return Arrays(x, np.arange(rows) % 3, kind)


TRANSFORMS = {"pixels": "crop-flip+noise+mixup", "tensor": "crop-flip+mixup", "features": "noise+mixup"}


class Witness(nn.Module):
    """A member that remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x.flatten(1)[:, :3]


def run(folder: Path, splits: dict[str, SplitPlan], teachers: list[Teacher], workers: int = 0) -> None:
    cache_outputs(
        folder, Classification, splits, teachers, Asking("float32", BATCH, torch.device("cpu"), workers, Silent())
    )


def seen_in_caching(folder: Path, splits: dict[str, SplitPlan], workers: int = 0) -> Hashes:
    """Row (of all splits end to end) and view to the hash of what the member saw."""
    witness = Witness()
    run(folder, splits, [Teacher(Member("m", "s", preprocessing=TO), lambda: witness)], workers)
    seen: Hashes = {}
    # a member is asked again after each split; what was before are trials and probes
    batches = sum(-(-len(plan.source) // BATCH) * plan.count + 1 for plan in splits.values())
    shown = iter(witness.seen[-batches:])
    offset = 0
    for plan in splits.values():
        for start in range(0, len(plan.source), BATCH):
            for view in range(plan.count):
                for row, x in enumerate(next(shown), start):
                    seen[offset + row, view] = hashed(x.numpy())
        next(shown)
        offset += len(plan.source)
    return seen


def seen_in_training(rows: CachedRows, order: Order, workers: int, start: int = 0) -> Hashes:
    seen: Hashes = {}
    steps = Steps(order, start, VIEW_COUNT * order.steps_per_epoch)
    for batch in DataLoader(rows, batch_sampler=steps, collate_fn=collate, num_workers=workers):
        for index, x in zip(batch.indices.tolist(), batch.x, strict=True):
            seen[index[0], index[1]] = hashed(x.numpy())
    return seen


@pytest.mark.thorough
@forked
@pytest.mark.parametrize("kind", ["pixels", "tensor", "features"])
def test_training_sees_bit_for_bit_what_the_members_saw(tmp_path: Path, kind: Kind) -> None:
    plans = {}
    for name, rows in (("train", 14), ("transfer", 7)):
        data = source(kind, rows, rows)
        view = open_view(TRANSFORMS[kind], data.scale)
        plans[name] = SplitPlan(data, view, TRANSFORMS[kind], SEED, VIEW_COUNT)
    seen = seen_in_caching(tmp_path / "a", plans)
    assert len(seen) == 21 * VIEW_COUNT
    assert len(set(seen.values())) == len(seen), "two views are the same"
    assert seen_in_caching(tmp_path / "b", plans, workers=2) == seen

    cache = Cache(tmp_path / "a")
    splits = [CachedSplit(p.source, p.view, p.seed, cache.open(name, p.count)) for name, p in plans.items()]
    rows = CachedRows(splits, TO)
    for workers in (0, 2):
        assert seen_in_training(rows, Order(21, VIEW_COUNT, 3, seed=5), workers) == seen
    resumed = seen_in_training(rows, Order(21, VIEW_COUNT, 3, seed=6), workers=2, start=8)
    assert resumed.items() <= seen.items()
    assert len(resumed) == 13 * 3
    ranks = [seen_in_training(rows, Order(21, VIEW_COUNT, 3, 5, Rank(index, 3)), 0) for index in range(3)]
    assert ranks[0] | ranks[1] | ranks[2] == seen


@pytest.mark.parametrize("kind", ["pixels", "tensor", "features"])
def test_rows_of_several_splits_are_their_plans_and_their_records(tmp_path: Path, kind: Kind) -> None:
    """Inputs against `Plan` taken in hand, labels against `Plan.y`, logits against what the member answered."""
    sources = {"train": source(kind, 9, 1), "transfer": source(kind, 5, 2)}
    sources["transfer"].labels = None  # type: ignore[misc]
    transform = TRANSFORMS[kind]
    plans = {n: SplitPlan(s, open_view(transform, s.scale), transform, SEED, 2) for n, s in sources.items()}
    seen_in_caching(tmp_path, plans)
    cache = Cache(tmp_path)
    splits = [CachedSplit(p.source, p.view, p.seed, cache.open(name, 2)) for name, p in plans.items()]
    rows, outputs = CachedRows(splits, TO), TeacherOutputs(splits)
    assert len(rows) == 14
    for index in [(0, 0), (8, 1), (9, 0), (13, 1), (4, 1)]:
        example = rows[index]
        part = 0 if index[0] < 9 else 1
        own = splits[part].source
        row = index[0] - 9 * part
        plan = splits[part].view.plan(SEED, index[1], row, len(own))
        items = [own.item(other) for other in plan.rows]
        assert_array_equal(example.x, plan.x(items, TO))
        expected = plan.y(items) or (0, 0, 1.0)
        assert (example.own, example.partner, example.weight) == tuple(map(float, expected))
        if part == 1:
            assert not example.known
        read = outputs.read(np.array([index]))
        assert_array_equal(read[0, 0], example.x.reshape(-1)[:3])
    mixed = outputs.read(np.array([[13, 1], [0, 0], [9, 1]]))
    assert_array_equal(mixed[1], outputs.read(np.array([[0, 0]]))[0])
    assert_array_equal(mixed[0], outputs.read(np.array([[13, 1]]))[0])


def test_decoded_images_replay_too(tmp_path: Path) -> None:
    from PIL import Image

    x, _ = examples(5, 0)
    for row, pixels in enumerate(x):
        Image.fromarray(np.repeat(np.repeat(pixels, 4, 0), 3, 1)).save(tmp_path / f"{row}.jpg")
    names = [f"{row}.jpg" for row in range(5)]
    view = open_view("crop-flip")
    plan = SplitPlan(ImageFolder(tmp_path, names), view, "crop-flip", SEED, 2)
    to = Preprocessing((8, 8), (0.4, 0.4, 0.4), (0.3, 0.3, 0.3))
    witness = Witness()
    run(tmp_path / "cache", {"train": plan}, [Teacher(Member("m", "s", preprocessing=to), lambda: witness)])
    later = ImageFolder(tmp_path, names)  # decodes anew
    records: Records = Cache(tmp_path / "cache").open("train", 2)
    rows = CachedRows([CachedSplit(later, view, SEED, records)], to)
    for view_index in range(2):
        for row in range(5):
            assert_array_equal(rows[row, view_index].x, witness.seen[view_index - 3][row])  # the last is asked again


# --- the proof --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = make_folder(tmp_path / "tiny")
    cache_logits(settings(folder))
    return folder


def other_decoder(monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    """From now on pixels come out differently."""
    render = rendition.render
    monkeypatch.setattr(rendition, "render", lambda pixels, to: render(pixels, to) + np.float32(difference))


@pytest.mark.parametrize("levels", [1.0, 2.0, -2.0])
def test_pixels_that_differ_by_up_to_two_levels_are_accepted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, levels: float
) -> None:
    other_decoder(monkeypatch, levels / 255)
    train(settings(folder, {"train.epochs": 1}))
    if levels == 1:  # by two, all pixels alike, members answer otherwise, which is refused on its own account
        save_member(folder, 7)
        cache_logits(settings(folder))


@pytest.mark.parametrize("levels", [2.1, -3.0, float("nan")])
def test_pixels_that_differ_by_more_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, levels: float) -> None:
    before = contents(folder / "cache")
    other_decoder(monkeypatch, levels / 255)
    said = (f"differs by {abs(levels) / 255:.4f}", "(allowed: 0.0078)", "transform or the image decoder has changed")
    with refused("View 0 of row 0 of train", *said, "run edistill cache-logits --overwrite"):
        train(settings(folder))
    assert contents(folder / "cache") == before


def test_a_cache_is_not_extended_with_another_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the new member would have seen other pixels than the old ones, and the proof would be of the new."""
    other_decoder(monkeypatch, 4 / 255)
    old = {name: content for name, content in contents(folder / "cache").items() if name != "manifest.json"}
    save_member(folder, 7)
    with refused("View 0 of row 0 of train differs by 0.0157"):
        cache_logits(settings(folder))
    assert contents(folder / "cache").items() >= old.items()
    with refused("View 0 of row 0 of train differs by 0.0157"):
        cache_logits(settings(folder, {"views.count": 3}))
    cache_logits(settings(folder), overwrite=True)
    train(settings(folder))


def test_every_pair_of_levels_two_apart_is_accepted(tmp_path: Path) -> None:
    """In float32, 2/255 is a little more or less according to where it starts."""
    levels = np.arange(254, dtype=np.uint8)
    view = open_view("none")
    plans = [Arrays((levels + up).reshape(1, 254, 1, 1), None, "pixels") for up in (0, 2)]
    to = Preprocessing((254, 1), (0.5,), (0.5,))
    keep_samples(tmp_path, "train", ViewedRows(plans[0], view, 0), 1, to)
    check_samples(tmp_path, "train", ViewedRows(plans[1], view, 0), 1)


@pytest.mark.parametrize("kind", ["tensor", "features"])
def test_inputs_that_are_no_pixels_differ_by_rounding_only(tmp_path: Path, kind: Kind) -> None:
    data = source(kind, 9, 0)
    view = open_view("mixup", data.scale)
    keep_samples(tmp_path, "train", ViewedRows(data, view, 0), 2, None)
    for difference, accepted in ((1e-6, True), (1e-3, False)):
        x = np.stack([data.item(row).x for row in range(9)])
        other = Arrays(x + np.float32(difference), None, kind)
        if accepted:
            check_samples(tmp_path, "train", ViewedRows(other, view, 0), 2)
        else:
            with refused("of train differs by 0.0010"):
                check_samples(tmp_path, "train", ViewedRows(other, view, 0), 2)


def test_each_of_several_arrays_has_the_tolerance_of_its_kind() -> None:
    parts = (
        Part("image", "image", "pixels", (1, 1, 2), Preprocessing((1, 2), (0.0,), (1.0,))),
        Part("word", "word", "tokens", (2,)),
        Part("size", "size", "features", (3,)),
    )
    then = np.array([0.2, 0.9, 7, 8, 20, -1000, 3], np.float32)
    level, own = 2 / 255, 1e-5 * 1000
    assert_allclose(_tolerance("several", Several(parts), then), [level, level, 0, 0, own, own, own], atol=2e-6)
    assert _tolerance("text", None, then) == 0
    assert _tolerance("features", None, then[:2]) == 1e-5, "of 1 at least"


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_samples_span_the_rows_and_the_first_views(tmp_path: Path, rows: int) -> None:
    from safetensors.numpy import load_file

    data = source("features", rows, 0)
    keep_samples(tmp_path, "ood/x", ViewedRows(data, open_view("noise", data.scale), 0), 9, None)
    kept = load_file(tmp_path / "replay/ood/x.safetensors")
    assert len(kept) == min(rows, ROWS) * VIEWS
    assert {f"0/{VIEWS - 1}", f"{rows - 1}/0"} <= kept.keys()
    # fewer views are asked for now
    check_samples(tmp_path, "ood/x", ViewedRows(data, open_view("noise", data.scale), 0), 2)


def test_another_size_is_refused(tmp_path: Path) -> None:
    keep_samples(tmp_path, "train", ViewedRows(source("features", 3, 0), open_view("none"), 0), 1, None)
    with refused("saw row 0 of train as (36,), but it is (1, 6, 6) now"):
        check_samples(tmp_path, "train", ViewedRows(source("tensor", 3, 0), open_view("none"), 0), 1)


@pytest.mark.parametrize("damage", ["missing", "truncated", "emptied"])
def test_without_the_proof_nothing_is_trained(folder: Path, damage: str) -> None:
    file = folder / "cache/replay/train.safetensors"
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with refused(
        str(file), "missing" if damage == "missing" else "damaged", "Restore it, or run edistill cache-logits"
    ):
        train(settings(folder))
    file.write_bytes(content)
    train(settings(folder))


@pytest.mark.parametrize("killed", [False, True])
def test_a_first_member_of_another_size_extends_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """The samples say themselves how they were rendered, also where a killed pass had already noted the member."""
    plan = SplitPlan(source("pixels", 12, 0), open_view("crop-flip"), "crop-flip", 0, 2)
    small, large = (Preprocessing((side, side), (0.5,), (0.5,)) for side in (6, 8))
    old = Teacher(Member("b", "s", preprocessing=small), lambda: linear(0))
    new = Teacher(Member("a", "t", preprocessing=large), Witness)
    run(tmp_path / "cache", {"train": plan}, [old])
    check_samples(tmp_path / "cache", "train", plan.rows(), 2)
    with killed_at(4 if killed else 1000, monkeypatch, tmp_path) as happened:
        run(tmp_path / "cache", {"train": plan}, [new, old])
    assert bool(happened) == killed
    if killed:
        assert [member.name for member in Cache(tmp_path / "cache").manifest.members] == ["a", "b"]
        run(tmp_path / "cache", {"train": plan}, [new, old])
    check_samples(tmp_path / "cache", "train", plan.rows(), 2)
    run(tmp_path / "whole", {"train": plan}, [new, old])
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
