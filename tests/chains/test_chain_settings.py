"""A chain's generations by their settings: what is the ensemble's, and what a trial's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from chains_helpers import ROWS, WEIGHTS, asked, chained
from tiny import contents, make_folder, refused_and_kept, save_member, settings

from ensemble_distill import teachers
from ensemble_distill.chains.settings import generation_settings
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.settings import (
    MemberSettings,
    PreprocessingSettings,
    TeacherSettings,
    UnitSettings,
    load_settings,
    settings_from,
)
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny", rows=ROWS)


def weights(chain: Path) -> list[bytes]:
    """Of every generation."""
    return [path.read_bytes() for path in sorted(chain.glob(f"generation-*/{WEIGHTS}"))]


def test_a_generation_of_a_trial_replays_and_is_evaluated_by_its_own_file(folder: Path) -> None:
    few: dict[str, Any] = {"limit": 12}
    cache_logits(settings(folder, few))
    chain = chained(folder, "few", 2, **few).folder
    assert chain == folder / "runs-limit-12/few"
    before = contents(folder, without=["evaluations"])
    own = load_settings(chain / "generation-2/args.toml")
    assert not train(own).fresh
    assert contents(folder) == before
    (last,) = (run for run in evaluate(settings(folder, few), "few").to_json()["models"] if run == "generation-2")
    assert evaluate(own, "generation-2").run == last


# --- the ensemble's own settings -------------------------------------------------------------------------------------

SET: dict[str, Any] = {
    "path": "elsewhere",
    "model": "model.py:make_teacher",
    "model_kwargs": {"classes": 3},
    "output": "probabilities",
    "standardized": UnitSettings(mean=1.0, std=2.0),
    "variance": 1.0,
    "preprocessing": PreprocessingSettings.model_validate({"size": (6, 6)}),
    "inputs": {"x": "y"},
    "as_": "heads",
    "average": "logits",
    "weights": (1.0, 2.0),
    "folds": "folds.npy",
    "hub": {"far": "hf:someone/far"},
    "members": {"member-*": MemberSettings.model_validate({"weight": 2.0})},
}


@pytest.mark.parametrize("field", TeacherSettings.model_fields)
def test_a_later_generation_has_no_members_but_the_one_before(field: str, tmp_path: Path) -> None:
    """Whatever `[teachers]` says of the ensemble, and all that it may come to say."""
    fields = TeacherSettings.model_fields
    assert SET.keys() == fields.keys()
    assert SET[field] != fields[field].get_default(call_default_factory=True)
    given = settings_from({"data": {"train": "x.npz"}}, tmp_path)
    given = given.model_copy(update={"teachers": given.teachers.model_copy(update={field: SET[field]})})
    first, second = (getattr(generation_settings(given, tmp_path / "chain", k).teachers, field) for k in (1, 2))
    assert first == SET[field]
    if field == "path":
        assert second == str(tmp_path / "chain/generation-1")
    elif field in {"output", "standardized", "variance", "inputs"}:
        assert second == SET[field]
    else:
        assert second == fields[field].get_default(call_default_factory=True)


@pytest.fixture
def far(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Overrides with a member of the hub, whose weights are those of seed 7, and a cache of it and the others."""
    (folder / "hub").mkdir()
    file = save_member(folder, 7).rename(folder / "hub/far.safetensors")
    monkeypatch.setattr(teachers, "snapshot", lambda name, given: file)
    cache_logits(settings(folder, {"teachers.hub": {"far": "hf:someone/far"}, "output.cache": "with-far"}))
    return {"teachers__hub": {"far": "hf:someone/far"}, "output__cache": "with-far"}


def test_a_member_of_the_hub_teaches_the_first_generation_alone(folder: Path, far: dict[str, Any]) -> None:
    """As one in the folder does."""
    chain = chained(folder, "hub", 2, **far).folder
    config = StudentConfig.load(chain / "generation-2")
    assert [member.name for member in config.provenance.members] == ["generation-1"]
    save_member(folder, 3, seed=7)
    cache_logits(settings(folder, {"output.cache": "here"}))
    assert weights(chain) == weights(chained(folder, "here", 2, output__cache="here").folder)
    assert not chained(folder, "hub", 2, **far).fresh
    assert chained(folder, "hub", 3, **far).fresh


def test_a_generation_that_learned_from_others_too(folder: Path, far: dict[str, Any]) -> None:
    """As with 0.2.0, which asked the hub's members beside it."""
    chain = chained(folder, "hub", 2, **far).folder
    own = generation_settings(settings(folder, asked("hub", 2, **far)), chain, 2)
    given = settings(folder).teachers
    far_too = {"hub": {"far": "hf:someone/far"}, "model": given.model, "preprocessing": given.preprocessing}
    both = own.model_copy(update={"teachers": own.teachers.model_copy(update=far_too)})
    shutil.rmtree(chain / "generation-2")
    cache_logits(both)
    told = ("caches/generation-1 holds what generation-1 and far said", "learns from generation-1 alone", "Delete")
    with refused_and_kept(folder, *told):
        chained(folder, "hub", 2, **far)
    train(both)
    told = ("generation-2 learned from generation-1 and far", "learns from generation-1 alone", "Delete")
    for count in (2, 3):
        with refused_and_kept(folder, *told):
            chained(folder, "hub", count, **far)
    shutil.rmtree(chain / "generation-2")
    shutil.rmtree(chain / "caches/generation-1")
    assert chained(folder, "hub", 2, **far).fresh, "by the remedy"
