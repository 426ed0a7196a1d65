"""Names of members come from users' file names: odd ones work from the cache to the exported file, and what no file can
be called is refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny import make_folder, member_state, refused, settings

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.facts import Member
from ensemble_distill.runs.run import Run
from ensemble_distill.serving.served import Served
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify

ODD = (
    "member 1",
    "Größe=0.1, ema",
    "数字",
    "x",  # as stored inputs are called
    "inputs",
    "ood",
    "a.v0",
    "a.part",
    "-o",
    "[a-b]*?",
    "%s {0} $HOME ~",
    "'\"`",
    "=1+1",
    "metadata__",
    "con:",
    "é" * 120,
)


def save_named(folder: Path, name: str, seed: int) -> None:
    (folder / "teachers").mkdir(exist_ok=True)
    save_file(member_state(seed), folder / "teachers" / f"{name}.safetensors")


@pytest.mark.thorough
def test_odd_names_work_from_the_cache_to_the_exported_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", members=0, rows={"train": 24, "validation": 24, "test": 10})
    for seed, name in enumerate(ODD):
        save_named(folder, name, seed)
    transform = "crop-flip+ods"  # which stores inputs beside the members' records
    asked = settings(folder, {"views.transform": transform, "views.count": 1, "train.epochs": 1})
    cache_logits(asked)
    assert set(Manifest.load(folder / "cache").names) == set(ODD)
    assert cache_logits(asked).added == 0
    assert not verify(folder / "cache").problems
    train(asked)
    assert {member.name for member in Run.open(folder / "runs/hydra-s0").provenance.members} == set(ODD)
    evaluate(asked)
    calibrate(asked)
    (exported,) = export(asked, onnx=True).files
    assert {member.name for member in Served(exported).card.members} == set(ODD)
    assert {member["name"] for member in inspect(folder / "cache")["members"]} == set(ODD)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\\b", "a\u202eb", "é" * 121, "a\udcff"])
def test_a_name_that_no_record_can_have_is_refused_and_renaming_helps(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "tiny", members=1)
    os.rename(folder / "teachers/member-0.safetensors", folder / f"teachers/{name}.pt")  # noqa: PTH104
    with refused("would be member", "Rename it"):
        cache_logits(settings(folder))
    assert not (folder / "cache").exists()
    (folder / f"teachers/{name}.pt").rename(folder / "teachers/renamed.safetensors")
    assert cache_logits(settings(folder)).members == ("renamed",)


def test_a_member_has_a_plain_name_whatever_file_it_is_read_from() -> None:
    for name in ("../a", "/a", "", "..", "a\nb", 3, None):
        with pytest.raises(ValueError, match="its name is to be that of a file"):
            Member(name, "0" * 64)  # type: ignore[arg-type]
