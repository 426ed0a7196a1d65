"""`train --generations`: what each generation learned from, and growing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains_helpers import ROWS, WEIGHTS, asked, chained, make_chain
from evaluate_helpers import CACHED, Floats, pixels_of, student_of
from numpy.testing import assert_allclose
from scipy.special import log_softmax
from tiny import contents, refused, refused_and_kept, save_member, settings, unseal

from ensemble_distill import load_student
from ensemble_distill.cache.reader import Cache
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.settings import load_settings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workflows.cache_logits import cache_in, cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train
from ensemble_distill.workspace import Workspace

NEAR: dict[str, Any] = CACHED
pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write to it."""
    return make_chain(tmp_path_factory.mktemp("chain") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def weights(chain: Path) -> list[bytes]:
    """Of every generation."""
    return [path.read_bytes() for path in sorted(chain.glob(f"generation-*/{WEIGHTS}"))]


# --- what each generation learned from --------------------------------------------------------------------------


@torch.no_grad()
def said_of_views(folder: Path, run: Path, split: str, view: int) -> Floats:
    """Log-probabilities (N, 1, K) of a run on every row of a split, rendered as that view."""
    plan = Workspace(settings(folder)).split(split)
    source, rows = plan.source, []
    preprocessing = StudentConfig.load(run).architecture.preprocessing
    for row in range(len(source)):
        rendition = plan.view.plan(plan.seed, view, row, len(source))
        rows.append(rendition.x([source.item(other) for other in rendition.rows], preprocessing))
    found: Floats = log_softmax(
        load_student(run, trust=True)(torch.from_numpy(np.stack(rows))).double().numpy(), axis=-1
    )
    return found


@pytest.mark.parametrize("generation", [1, 2])
def test_a_cache_holds_what_its_generation_says(made: Path, generation: int) -> None:
    run, cache = made / f"runs/whole/generation-{generation}", made / f"runs/whole/caches/generation-{generation}"
    opened = Cache(cache)
    assert {name: (split.rows, opened.views(name)) for name, split in opened.manifest.splits.items()} == {
        "train": (40, 2),
        "transfer": (9, 2),
        "validation": (24, 1),
        "test": (10, 1),
    }
    assert [member.name for member in opened.manifest.members] == [f"generation-{generation}"]
    for split in ("train", "transfer"):
        records = opened.open(split, 2)
        for view in (0, 1):
            found = log_softmax(records.read(range(ROWS[split]), view).astype(np.float64), axis=-1)
            assert_allclose(found, said_of_views(made, run, split, view), **NEAR)
    found = log_softmax(opened.open("validation").read(range(24)).astype(np.float64), axis=-1)
    plain = student_of(run, pixels_of(made / "data/validation.npz"))
    assert_allclose(found, plain, **NEAR)
    other = student_of(made / "runs/whole/generation-3", pixels_of(made / "data/validation.npz"))
    assert np.abs(found - other).max() > 0.01, "which it could be mistaken for otherwise"


def test_the_last_generation_has_no_cache(made: Path) -> None:
    assert {path.name for path in (made / "runs/whole/caches").iterdir()} == {"generation-1", "generation-2"}


def test_a_generation_names_the_one_before(made: Path) -> None:
    chain = made / "runs/whole"
    configs = [StudentConfig.load(chain / f"generation-{g}") for g in (1, 2, 3)]
    assert [member.name for member in configs[0].provenance.members] == ["member-0", "member-1", "member-2"]
    for before, config in ((1, configs[1]), (2, configs[2])):
        (member,) = config.provenance.members
        assert (member.name, member.sha256) == (
            f"generation-{before}",
            sha256_file(chain / f"generation-{before}" / WEIGHTS),
        )
    assert len({tuple(sorted(config.provenance.trained_on.items())) for config in configs}) == 1
    assert set(configs[0].provenance.trained_on) == {"train", "transfer"}


@pytest.mark.thorough
def test_every_generation_has_a_seed_of_its_own(folder: Path) -> None:
    def seeds(name: str) -> list[int]:
        chain = folder / "runs" / name
        return [load_settings(chain / f"generation-{g}/args.toml").train.seed for g in (1, 2, 3)]

    chained(folder, "one", 3, train__seed=1, train__epochs=1)
    assert len({0, 1, *seeds("whole"), *seeds("one")}) == 8


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_a_generation_replays_alone(folder: Path, generation: int) -> None:
    run = folder / f"runs/whole/generation-{generation}"
    replayed = load_settings(run / "args.toml", {"output.name": "alone", "output.runs": str(folder / "runs")})
    assert replayed.train.generations is None
    train(replayed)
    assert (folder / "runs/alone" / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


def test_a_later_generation_is_an_ordinary_distillation(folder: Path) -> None:
    """A cache and a run by the two commands, whose only teacher is the generation before."""
    chain = folder / "runs/whole"
    seed = load_settings(chain / "generation-3/args.toml").train.seed
    (folder / "predecessor").mkdir()
    shutil.copytree(chain / "generation-2", folder / "predecessor/generation-2")
    config = unseal(folder / "predecessor/generation-2")
    config.write_text(config.read_text().replace('"../../../model.py:', f'"{folder}/model.py:'))
    by_hand = {
        "teachers": {"path": "predecessor"},
        "output.cache": "by-hand",
        **asked("by-hand", None, train__seed=seed),
    }
    cache_in(Workspace(settings(folder, by_hand)), only=["train", "transfer"])
    train(settings(folder, by_hand))
    assert (folder / "runs/by-hand" / WEIGHTS).read_bytes() == (chain / "generation-3" / WEIGHTS).read_bytes()


@pytest.mark.thorough
def test_the_first_generation_learns_from_one_member(folder: Path) -> None:
    """As from a folder that holds no other; the members' weights mean nothing then."""
    weighted: dict[str, Any] = {"teachers__weights": [1.0, 2.0, 3.0]}
    chain = chained(folder, "of-one", 2, train__teacher="member-1", **weighted).folder
    assert [member.name for member in Chain.open(chain).teachers] == ["member-1"]
    assert load_settings(chain / "generation-2/args.toml").train.teacher is None
    (folder / "teachers/member-0.safetensors").unlink()
    (folder / "teachers/member-2.safetensors").unlink()
    cache_logits(settings(folder, {"output.cache": "alone"}))
    alone = chained(folder, "alone", 2, output__cache="alone").folder
    assert weights(alone) == weights(chain)
    assert weights(alone)[0] != weights(folder / "runs/whole")[0]


@pytest.mark.parametrize(
    "more",
    [
        {"train__method": "kd"},
        {"method__objective": "cwtm"},
        {"method__objective": "dkpp", "data__validation": None},
        {"views__transform": "ods", "output__cache": "pushed"},
        {"student__model": "model.py:make_teacher", "student__init": "member-0"},
        {"student__kwargs": {"width": 3}, "student__share": {"2": "2"}, "train__teacher": "member-1"},
        {"train__model_ema": True, "teachers__average": "logits"},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_other_ways_to_learn(folder: Path, more: dict[str, Any]) -> None:
    if "output__cache" in more:
        overrides = {key.replace("__", "."): value for key, value in more.items()}
        cache_logits(settings(folder, overrides))
    report = chained(folder, "other", 2, train__epochs=1, **more)
    x = pixels_of(folder / "data/test.npz")
    first, second = (student_of(run.folder, x) for run in report.generations)
    assert np.isfinite(second).all()
    assert np.abs(first - second).max() > 1e-3


# --- growing ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_grown_chain_is_the_same_chain(folder: Path) -> None:
    for count in (1, 2, 3):
        report = chained(folder, "grown", count)
        assert [run.fresh for run in report.generations] == [False] * (count - 1) + [True]
        assert len(weights(report.folder)) == count
    assert report.fresh
    assert weights(folder / "runs/grown") == weights(folder / "runs/whole")
    assert len(set(weights(folder / "runs/grown"))) == 3


def test_a_generation_that_has_hardly_learned_is_not_taken_for_one_of_other_classes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a trial, --limit 64, or with a few steps: what looks like another class order is none in a chain."""

    def refuse(*args: Any) -> None:
        raise EdistillError("its outputs look to be in another class order than the data. Name the folders.")

    monkeypatch.setattr(Classification, "refuse_other_meaning", refuse)
    assert len(chained(folder, "hardly", 2).generations) == 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_finished_chain_is_up_to_date(made: Path, count: int) -> None:
    before = contents(made)
    report = chained(made, "whole", count)
    assert (report.fresh, report.method, len(report.generations)) == (False, "ban", count)
    assert contents(made) == before


@pytest.mark.thorough
def test_a_chain_grows_without_the_ensemble(folder: Path) -> None:
    chained(folder, "grown", 1)
    shutil.rmtree(folder / "teachers")
    shutil.rmtree(folder / "cache")
    assert chained(folder, "grown", 3).fresh
    assert weights(folder / "runs/grown") == weights(folder / "runs/whole")


def test_a_chain_grows_though_the_cache_gained_a_member(folder: Path) -> None:
    """Its first generation is finished, and the others learn from each other."""
    save_member(folder, 3)
    cache_logits(settings(folder))
    before = weights(folder / "runs/whole")
    assert not chained(folder, "whole", 3).fresh
    assert chained(folder, "whole", 4).fresh
    assert weights(folder / "runs/whole")[:3] == before
    assert [member.name for member in Chain.open(folder / "runs/whole").teachers] == [
        "member-0",
        "member-1",
        "member-2",
    ]
    (folder / "runs/whole/generation-1" / WEIGHTS).unlink()  # one that is unfinished does learn from the cache
    with refused("generation-1 was trained from members member-0, member-1, member-2", "holds", "member-3"):
        chained(folder, "whole", 4)


def test_a_chain_does_not_grow_beside_other_members(folder: Path) -> None:
    save_member(folder, 2, seed=9)
    cache_logits(settings(folder), overwrite=True)
    with refused_and_kept(folder, "generation-1 was trained from members member-0, member-1, member-2", "--name"):
        chained(folder, "whole", 4)
    with refused("was trained from members"):  # and a run that is no chain's has other heads with one more
        train(settings(folder, {"output.name": "alone"}))
        save_member(folder, 3)
        cache_logits(settings(folder))
        train(settings(folder, {"output.name": "alone"}))


@pytest.mark.thorough
def test_a_chain_grows_from_what_a_calibrated_generation_predicts(folder: Path) -> None:
    """And earlier ones may be calibrated since; taking the calibration away makes it another teacher."""
    chained(folder, "grown", 2)
    for generation in (1, 2):
        calibrate(settings(folder), f"grown/generation-{generation}")
    chain = chained(folder, "grown", 3).folder
    found = Cache(chain / "caches/generation-2").open("validation").read(range(24))
    temperature = json.loads((chain / "generation-2/calibration.json").read_text())["temperature"]
    plain = student_of(chain / "generation-2", pixels_of(folder / "data/validation.npz"))
    assert_allclose(log_softmax(found, axis=-1), log_softmax(plain / temperature, axis=-1), **NEAR)
    assert weights(chain)[:2] == weights(folder / "runs/whole")[:2]
    assert weights(chain)[2] != weights(folder / "runs/whole")[2]
    calibrate(settings(folder), "grown/generation-1", remove=True)
    chained(folder, "grown", 3)
    calibrate(settings(folder), "grown/generation-2", remove=True)
    with refused_and_kept(folder, "generation-3 learned from generation-2 with sha256"):
        chained(folder, "grown", 3)


@pytest.mark.thorough
def test_an_overwritten_chain_keeps_nothing_of_the_old_one(folder: Path) -> None:
    evaluate(settings(folder), "whole")
    assert (folder / "runs/whole/evaluations").is_dir()
    chained(folder, "whole", 2, overwrite=True, train__lr=0.02)
    chained(folder, "fresh", 2, train__lr=0.02)
    assert weights(folder / "runs/whole") == weights(folder / "runs/fresh")
    assert contents(folder / "runs/whole").keys() == contents(folder / "runs/fresh").keys()
