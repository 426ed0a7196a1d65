"""Members of the hub: what the local cache has is a member by the name it is given, and nothing is fetched for it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ensemble_distill.data.folds import refuse_other_folds
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import places
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.teacher import Context, Teacher

COMMIT, OTHER = "0" * 40, "1" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub keeps it, links to blobs and all, with two revisions of one timm model; no network."""
    cache = tmp_path / "hub"
    repo = cache / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    (repo / "refs/v2").write_text(OTHER)
    (repo / "blobs").mkdir()
    for seed, commit in enumerate((COMMIT, OTHER)):
        torch.manual_seed(seed)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        model = timm.create_model("test_resnet.r160_in1k", num_classes=3)
        save_file(model.state_dict(), repo / "blobs" / f"w{seed}")
        config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": model.pretrained_cfg}
        (repo / "blobs" / f"c{seed}").write_text(json.dumps(config))
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/w{seed}")
        (snapshot / "config.json").symlink_to(f"../../blobs/c{seed}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("huggingface_hub._snapshot_download.HfApi.repo_info", no_network)
    return cache


def listed(path: Path, **said: Any) -> list[Teacher]:
    return open_teachers(path, Context(TeacherSettings.model_validate(said)))


@pytest.mark.parametrize("scheme", ["hf", "hf-hub"])
def test_what_the_cache_has_is_a_member_by_its_name(hub: Path, tmp_path: Path, scheme: str) -> None:
    found = listed(tmp_path / "none", hub={"one": f"{scheme}:someone/tiny", "two": f"{scheme}:someone/tiny@v2"})
    assert [teacher.member.name for teacher in found] == ["one", "two"]
    own = shutil.copytree(hub / "models--someone--tiny/snapshots" / OTHER, tmp_path / "teachers/here")
    (same,) = listed(own)
    assert same.member.sha256 == found[1].member.sha256
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found[1].build()(x), same.build()(x))


def test_they_stand_behind_those_of_the_folder(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "models--someone--tiny/snapshots" / COMMIT, tmp_path / "teachers/zero")
    found = listed(tmp_path / "teachers", hub={"one": "hf:someone/tiny@v2"})
    assert [teacher.member.name for teacher in found] == ["zero", "one"]
    with pytest.raises(EdistillError, match=r"teachers\.hub\.zero"):
        listed(tmp_path / "teachers", hub={"zero": "hf:someone/tiny@v2"})


def test_weights_and_folds_go_to_members_by_their_names(hub: Path, tmp_path: Path) -> None:
    """Also where one of the hub comes first by its name, and stands last in the cache."""
    for name, commit in (("m-10", COMMIT), ("m-9", OTHER)):
        shutil.copytree(hub / "models--someone--tiny/snapshots" / commit, tmp_path / "teachers" / name)
    weights = dict(zip(["a", "m-9", "m-10"], [1.0, 2.0, 3.0], strict=True))
    settings = TeacherSettings.model_validate({"hub": {"a": "hf:someone/tiny"}, "weights": list(weights.values())})
    for names in itertools.permutations(weights):
        assert settings.shares(names) == tuple(weights[name] for name in names)
        assert [list(weights).index(name) for name in names] == places(names)
    with pytest.raises(EdistillError, match=r"natural order of their names \(a, m-9, m-10\)"):
        listed(tmp_path / "teachers", hub={"a": "hf:someone/tiny"}, weights=[1, 2])
    with pytest.raises(EdistillError, match="3 members: a, m-9, m-10"):
        refuse_other_folds(np.arange(4), ["m-9", "m-10", "a"])


def test_a_table_of_their_own_holds_for_them(hub: Path, tmp_path: Path) -> None:
    hubs = {"one": "hf:someone/tiny", "two": "hf:someone/tiny@v2"}
    found = listed(tmp_path / "none", hub=hubs, members={"two": {"output": "probabilities"}})
    assert [teacher.member.output for teacher in found] == ["logits", "probabilities"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("someone/tiny", "hf:OWNER/MODEL"),
        ("hf:someone/other", "hf download someone/other"),
        ("hf:someone/tiny@v3", "hf download someone/tiny"),
        ("hf:../../etc", "hf:OWNER/MODEL"),
    ],
)
def test_what_is_not_there_is_refused_by_name(hub: Path, tmp_path: Path, given: str, told: str) -> None:
    with pytest.raises(EdistillError) as refusal:
        listed(tmp_path / "none", hub={"one": given})
    for words in ("teachers.hub.one", given, told):
        assert words in str(refusal.value)
