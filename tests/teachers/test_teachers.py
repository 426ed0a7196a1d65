"""Opening a folder of members: what counts as one, in which order, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.utils.misc import natural_key as timm_natural_key
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import natural_key
from ensemble_distill.settings import TeacherSettings, settings_from
from ensemble_distill.teachers import FOREIGN, kinds, open_teachers
from ensemble_distill.teachers.names import SUFFIXES, member_name
from ensemble_distill.teachers.teacher import Context, Teacher

FACTORY = "from torch import nn\ndef make():\n    return nn.Linear(2, 3)\n"


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 2, generator=generator), "bias": torch.randn(3, generator=generator)}


def fill(folder: Path, *names: str) -> Path:
    """Checkpoints of a linear layer, each with weights of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(FACTORY)
    for seed, name in enumerate(names):
        save = save_file if name.endswith(".safetensors") else torch.save
        save(state(seed), folder / name)
    return folder


def open_here(path: Path, **settings: Any) -> list[Teacher]:
    model = f"{(path if path.is_dir() else path.parent) / 'model.py'}:make"
    values = {"model": model, **settings}
    return open_teachers(path, Context(TeacherSettings.model_validate(values, context={"root": path})))


def names_of(teachers: list[Teacher]) -> list[str]:
    return [teacher.member.name for teacher in teachers]


# --- what is a member ---------------------------------------------------------------------------------------


def test_members_come_in_natural_order(tmp_path: Path) -> None:
    fill(tmp_path, "member-10.pth", "member-2.safetensors", "Member-1.pth.tar", "member-02.x.bin")
    assert names_of(open_here(tmp_path)) == ["Member-1", "member-2", "member-02.x", "member-10"]


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "a.pth")
    for name in ("README.md", "rows.npy", ".hidden.pth", ".DS_Store", "notes"):
        (tmp_path / name).touch()
    for name in ("__pycache__", "figures", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "__pycache__" / "model.pt").touch()
    (tmp_path / "figures" / "a.png").touch()
    assert names_of(open_here(tmp_path)) == ["a"]


def test_a_path_that_is_a_checkpoint_is_the_only_member(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        fill(tmp_path, f"one.v2{suffix}", "other.pth")
        (teacher,) = open_here(tmp_path / f"one.v2{suffix}")
        assert teacher.member.name == "one.v2"
        assert torch.equal(teacher.build()(torch.zeros(1, 2))[0], state(0)["bias"])


def test_a_run_folder_is_a_member_alone_or_beside_others(tmp_path: Path) -> None:
    import timm

    fill(tmp_path, "a.pth")
    run = tmp_path / "run.1"
    run.mkdir()
    (run / "args.yaml").write_text(yaml.safe_dump({"model": "test_resnet", "num_classes": 2}))
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), run / "last.safetensors")
    assert names_of(open_here(run)) == ["run.1"]
    assert names_of(open_here(tmp_path)) == ["a", "run.1"]
    (run / "config.json").write_text('{"architecture": "test_resnet"}')
    (run / "last.safetensors").rename(run / "model.safetensors")
    torch.save(state(0), run / "last.pth.tar")
    with pytest.raises(EdistillError, match=r"run\.1 can be read as hf_folder and as timm_run\. Move"):
        open_here(tmp_path)


def test_listing_keeps_no_weights(tmp_path: Path) -> None:
    fill(tmp_path, "a.pth")
    torch.save(state(0) | {"padding": torch.zeros(100_000)}, tmp_path / "a.pth")
    (teacher,) = open_here(tmp_path)
    assert len(pickle.dumps(teacher)) < 10_000  # and so a worker process may be handed one
    with pytest.raises(EdistillError, match="not in the module: padding"):
        teacher.build()


@given(st.lists(st.text("Ab019_.-", min_size=1, max_size=8), max_size=6))
def test_our_natural_order_is_timms(names: list[str]) -> None:
    ours = sorted(names, key=natural_key)
    assert [timm_natural_key(name) for name in ours] == sorted(map(timm_natural_key, names))


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdistillError, match=r"gone, which does not exist\. Give one of these.*timm run folder"):
        open_here(tmp_path / "gone")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no member in it: it is empty"),
        (["notes.txt", "a.npy"], r"it holds a\.npy, notes\.txt\. Give one of these"),
        ([f"{n}.txt" for n in range(7)], r"it holds 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 2 more"),
        (["args.yaml"], r"it holds args\.yaml"),
    ],
)
def test_a_folder_without_members_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(EdistillError, match=message):
        open_here(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(EdistillError, match="has no member in it: it is another file"):
        open_here(tmp_path / "notes.txt")


@pytest.mark.parametrize("suffix", FOREIGN)
def test_checkpoints_of_other_tools_are_not_passed_over(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, "a.pth")
    (tmp_path / f"b{suffix}").touch()
    with pytest.raises(
        EdistillError, match=rf"b\{suffix} looks like a member, but nothing here loads it\. Move it out"
    ):
        open_here(tmp_path)


@pytest.mark.parametrize("content", ["args.yaml", "config.json", "weights.pth", "epoch=3.ckpt"])
def test_folders_that_hold_a_checkpoint_are_not_passed_over(tmp_path: Path, content: str) -> None:
    fill(tmp_path, "a.pth")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / content).touch()
    with pytest.raises(EdistillError, match=rf"b looks like a member.*\(it holds {content}\)"):
        open_here(tmp_path)


def test_a_broken_link_is_not_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "a.pth")
    (tmp_path / "b.pth").symlink_to(tmp_path / "gone.pth")
    with pytest.raises(EdistillError, match=r"b\.pth looks like a member"):
        open_here(tmp_path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.pth", "a.safetensors")
    with pytest.raises(EdistillError, match=r"a\.pth and a\.safetensors would both be member a\. Rename one"):
        open_here(tmp_path)


def test_identical_members_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.pth", "b.pth")
    save_file(state(0), tmp_path / "last.safetensors")
    with pytest.raises(EdistillError, match=r"a and last hold the same weights \(sha256 \w{12}…\).*Remove one"):
        open_here(tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "has 1 values for 2 members"),
        ([1.0, 1.0, 1.0], "has 3 values for 2 members"),
        ([0.0, 0.0], "one at least is above 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: list[float], message: str) -> None:
    fill(tmp_path, "a.pth", "b.pth")
    with pytest.raises(EdistillError, match=message):
        open_here(tmp_path, weights=weights)
    assert len(open_here(tmp_path, weights=[0.0, 2.0])) == 2


# --- every kind ---------------------------------------------------------------------------------------------


def test_the_kinds_are_the_packages_files() -> None:
    assert list(kinds()) == sorted(kinds())
    assert {"checkpoint", "hf_folder", "timm_run"} <= set(kinds())


def test_a_kind_claims_nothing_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    (tmp_path / "model.py").touch()
    (tmp_path / "empty").mkdir()
    for module in kinds().values():
        assert not any(module.claims(path) for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "gone"))


def test_messages_name_every_kind_by_its_first_line(tmp_path: Path) -> None:
    for kind in list(kinds()):
        first = (kinds()[kind].__doc__ or "").splitlines()[0].rstrip(".")
        assert first
        with pytest.raises(EdistillError) as error:
            open_here(tmp_path)
        assert first[1:] in str(error.value)


# --- the shared ensembles -----------------------------------------------------------------------------------


def test_the_ready_resnets_open(shared: Path) -> None:
    path = shared / "teachers" / "cifar10-resnet8"
    settings = settings_from({"teachers": {"path": str(path), "model": str(path / "model.py:make_teacher")}}, path)
    teachers = open_teachers(path, Context(settings.teachers))
    assert names_of(teachers) == [f"member-{index:02d}" for index in range(10)]
    assert {teacher.member.model for teacher in teachers} == {"model.py:make_teacher"}
    assert teachers[3].build()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.thorough
def test_the_ready_timm_runs_open_and_agree_with_timm(shared: Path) -> None:
    import timm

    path = shared / "teachers" / "cifar10-timm"
    teachers = open_teachers(path, Context(TeacherSettings.model_validate({})))
    assert names_of(teachers) == sorted(member_name(run) for run in path.iterdir())
    for teacher in teachers:
        preprocessing = teacher.member.preprocessing
        assert preprocessing is not None
        assert (preprocessing.size, preprocessing.mean) == ((32, 32), (0.4914, 0.4822, 0.4465))
        assert preprocessing.crop_pct == 1.0
        file = path / teacher.member.name / "model_best.pth.tar"
        original = timm.create_model(teacher.member.model, num_classes=10, checkpoint_path=str(file)).eval()
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(teacher.build()(x), original(x))
