"""Which teachers a run is trained from, beside which it is evaluated, and what it keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import ROWS, killed_at, make_folder, refused, save_data, save_member, settings

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

KD: dict[str, Any] = {"train.method": "kd", "train.epochs": 1, "output.name": "kd"}
CHAIN: dict[str, Any] = {"train.method": "ban", "train.epochs": 1, "train.generations": 2, "output.name": "chain"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_folder(tmp_path / "tiny", rows={**ROWS, "validation": 24})
    cache_logits(settings(made))
    return made


def from_chain(folder: Path, more: dict[str, Any]) -> Settings:
    return settings(folder, {"teachers.path": "runs/chain", "output.cache": "cache-bane", **more})


@pytest.fixture
def of_a_chain(folder: Path) -> Path:
    """A folder with a Hydra of a chain, called bane, whose settings name other teachers."""
    train_chain(settings(folder, CHAIN))
    cache_logits(from_chain(folder, {}))
    train(from_chain(folder, {"output.name": "bane", "train.epochs": 1}))
    return folder


# --- evaluated beside its own teachers ------------------------------------------------------------------------------


def test_a_run_is_compared_with_what_it_learned_from(of_a_chain: Path) -> None:
    asked = evaluate(from_chain(of_a_chain, {}), "bane").to_json()
    found = evaluate(settings(of_a_chain), "bane").to_json()
    for key in ("models", "fidelity"):
        assert found[key] == asked[key]
    calibrate(settings(of_a_chain), "bane", split="validation")


def test_its_cache_is_enough(of_a_chain: Path) -> None:
    (of_a_chain / "runs/chain").rename(of_a_chain / "elsewhere")
    found = evaluate(settings(of_a_chain), "bane").to_json()
    assert found["models"]["ensemble"]["nll"] is not None
    assert found["cost"]["ensemble"] is None


def test_settings_that_name_its_teachers_elsewhere_are_believed(folder: Path) -> None:
    train(settings(folder, KD))
    before = evaluate(settings(folder), "kd").to_json()
    for name in ("teachers", "cache"):
        (folder / name).rename(folder / f"{name}-old")
    save_member(folder, 0, seed=50)
    found = evaluate(settings(folder, {"teachers.path": "teachers-old", "output.cache": "cache-old"}), "kd").to_json()
    assert found["models"] == before["models"]
    with refused("member-0", "not among the teachers"):
        evaluate(settings(folder), "kd")


def test_one_generation_stands_beside_the_one_before(of_a_chain: Path) -> None:
    found = evaluate(settings(of_a_chain), "chain/generation-2", split="validation").to_json()
    whole = evaluate(settings(of_a_chain), "chain", split="validation").to_json()
    assert found["models"]["ensemble"]["nll"] == pytest.approx(
        whole["models"]["generation-1"]["nll"], rel=1e-4
    )  # read from a float16 cache


# --- trained from some of them --------------------------------------------------------------------------------------


def test_a_body_may_start_from_another_member_than_it_learns_from(folder: Path) -> None:
    asked = {
        **KD,
        "train.teacher": "member-1",
        "student.model": "model.py:make_teacher",
        "student.kwargs": {"classes": 3},
        "student.init": "member-0",
    }
    train(settings(folder, asked))
    assert [member.name for member in Run.open(folder / "runs/kd").provenance.members] == ["member-1"]


def test_one_run_is_not_several_generations(folder: Path) -> None:
    with refused("train.generations is 2", "train_chain"):
        train(settings(folder, CHAIN))


def test_a_refused_chain_leaves_its_name_free(folder: Path) -> None:
    with refused("elsewhere holds no cache"):
        train_chain(settings(folder, {**CHAIN, "output.cache": "elsewhere"}))
    train(settings(folder, {**CHAIN, "train.generations": None}))


def test_class_names_go_from_generation_to_generation(folder: Path) -> None:
    """Wherever they were found: here in the rows that only report."""
    save_data(folder, "test", 10, classes=np.array(list("abc")))
    cache_logits(settings(folder), overwrite=True)
    generations = train_chain(settings(folder, CHAIN)).generations
    assert len(generations) == 2
    for generation in generations:
        assert Run.open(generation.folder).architecture.task.names == ("a", "b", "c")
    cache_logits(from_chain(folder, {}))


# --- what it keeps of them ------------------------------------------------------------------------------------------

SHARED = {"2": "2", "3": "3"}  # a linear layer and its BatchNorm


@pytest.mark.parametrize("point", [None, 6, 14])
def test_shared_statistics_stay_through_averages_validation_and_resuming(
    folder: Path, monkeypatch: pytest.MonkeyPatch, point: int | None
) -> None:
    train(settings(folder, KD))
    teacher = {"teachers.path": "runs/kd", "output.cache": "cache-kd"}
    cache_logits(settings(folder, teacher))
    asked = {**teacher, "train.method": "ban", "train.model-ema": True, "student.share": SHARED, "train.epochs": 2}
    if point is not None:
        with killed_at(point, monkeypatch, folder / "runs") as happened:
            train(settings(folder, asked))
        assert happened
    train(settings(folder, asked))
    theirs, mine = (load_file(folder / "runs" / name / "student.safetensors") for name in ("kd", "ban-s0"))
    shared = [key for key in theirs if key.startswith(("body.2.", "body.3."))]
    assert any("running_var" in key for key in shared)
    for key in shared:
        assert torch.equal(mine[key], theirs[key]), key
    assert not torch.equal(mine["heads.layers.0.weight"], theirs["heads.layers.0.weight"])


def test_a_share_is_part_of_what_a_run_is(folder: Path) -> None:
    one = {**KD, "train.method": "ban", "train.teacher": "member-1", "output.name": "one"}
    train(settings(folder, {**one, "student.kwargs": {"width": 36}, "student.share": {"head": "2"}}))
    with pytest.raises(EdistillError, match=r"student\.share = \{'head': '2'\}, but now it is \{\}"):
        train(settings(folder, {**one, "student.kwargs": {"width": 36}}))
