"""Reading state dicts: every layout in use, every refusal, and never a pickle's own code."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import memory
from ensemble_distill.teachers.averages import AVERAGED
from ensemble_distill.teachers.choosing import PLAIN
from ensemble_distill.teachers.states import WRAPPERS, digest
from ensemble_distill.teachers.weights import read_weights


def a_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "stem.weight": torch.randn(4, 3, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
        "head.bias": torch.randn(2, generator=generator),
    }


def assert_same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_file_of_torch_save_is_read(tmp_path: Path, zipped: bool) -> None:
    for suffix in (".pth", ".pt", ".bin", ".tar", ".pth.tar"):
        file = tmp_path / f"m{suffix}"
        torch.save(a_state(), file, _use_new_zipfile_serialization=zipped)
        assert_same(read_weights(file).state, a_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": torch.randn(3).to(dtype)}
    save_file(state, tmp_path / "m.safetensors")
    assert_same(read_weights(tmp_path / "m.safetensors").state, state)


def test_a_state_dict_is_found_under_its_usual_names(tmp_path: Path) -> None:
    for key in (*AVERAGED, *PLAIN):
        torch.save({"epoch": 3, key: a_state(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.pth")
        weights = read_weights(tmp_path / "m.pth")
        assert_same(weights.state, a_state())
        assert weights.ema == (key in AVERAGED), key


def test_the_moving_average_is_preferred(tmp_path: Path) -> None:
    for plain, averaged in (*((PLAIN[0], key) for key in AVERAGED), *((key, AVERAGED[0]) for key in PLAIN)):
        torch.save({plain: a_state(0), averaged: a_state(1)}, tmp_path / "m.pth")
        weights = read_weights(tmp_path / "m.pth")
        assert weights.ema, (plain, averaged)
        assert_same(weights.state, a_state(1))


def test_an_average_that_is_no_state_dict_is_passed_over(tmp_path: Path) -> None:
    for ema in (None, {"decay": 0.99}, {}, "off"):
        torch.save({"state_dict": a_state(), "ema": ema}, tmp_path / "m.pth")
        weights = read_weights(tmp_path / "m.pth")
        assert not weights.ema
        assert_same(weights.state, a_state())


@pytest.mark.thorough
@given(st.lists(st.sampled_from(WRAPPERS), max_size=3))
def test_wrappers_prefixes_are_removed_in_any_order(tmp_path_factory: Any, wrappers: list[str]) -> None:
    file = tmp_path_factory.mktemp("wrapped") / "m.pth"
    torch.save({"".join(wrappers) + name: value for name, value in a_state().items()}, file)
    assert_same(read_weights(file).state, a_state())


def test_a_prefix_that_one_key_lacks_belongs_to_the_model(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "bias": torch.ones(1)}
    torch.save(state, tmp_path / "m.pth")
    assert_same(read_weights(tmp_path / "m.pth").state, state)


def test_torchs_own_averaged_model_is_unwrapped(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    torch.save({"model_ema": AveragedModel(module).state_dict()}, tmp_path / "m.pth")
    assert_same(read_weights(tmp_path / "m.pth").state, module.state_dict())


# --- what is refused --------------------------------------------------------------------------------------


class Payload:
    """Unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (lambda folder: Payload(os.mkdir, folder), f"{os.name}.mkdir"),
        (lambda folder: Payload(exec, f"import os; os.mkdir({folder!r})"), "exec"),
        (lambda folder: Payload(map, os.mkdir, [folder]), "map"),
    ],
    ids=["blocked module", "builtin", "builtin with a function"],
)
def test_a_pickles_code_does_not_run(tmp_path: Path, zipped: bool, payload: Any, named: str) -> None:
    content = {**a_state(), "x": payload(str(tmp_path / "ran"))}
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(EdistillError, match=rf"m\.pth is refused: .* names {named},.*--trust-checkpoints is the only"):
        read_weights(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()


def test_the_same_payload_would_have_run(tmp_path: Path) -> None:
    """The oracle of the test above: trusted, the file does make the folder."""
    torch.save({"state_dict": a_state(), "x": Payload(os.mkdir, str(tmp_path / "ran"))}, tmp_path / "m.pth")
    assert_same(read_weights(tmp_path / "m.pth", trust=True).state, a_state())
    assert (tmp_path / "ran").is_dir()


def test_a_bare_pickle_does_not_run_either(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for protocol in (0, 2, 4, 5):
        (tmp_path / "m.pt").write_bytes(pickle.dumps(Payload(os.mkdir, str(trace)), protocol))
        with pytest.raises(EdistillError, match=r"m\.pt is (refused|not a checkpoint)"):
            read_weights(tmp_path / "m.pt")
        assert not trace.exists()


def test_trust_opens_what_names_other_classes(tmp_path: Path) -> None:
    torch.save({"state_dict": a_state(), "history": collections.deque([1])}, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=r"names collections\.deque"):
        read_weights(tmp_path / "m.pth")
    assert_same(read_weights(tmp_path / "m.pth", trust=True).state, a_state())


def test_the_allowance_for_namespaces_ends_with_the_call(tmp_path: Path) -> None:
    torch.save({"state_dict": a_state(), "args": argparse.Namespace()}, tmp_path / "m.pth")
    read_weights(tmp_path / "m.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"model": nn.Linear(2, 2)}], ids=["bare", "in a dict"])
def test_a_whole_module_is_refused_trusted_or_not(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=r"names torch\.nn\.modules\.linear\.Linear.*model\.state_dict"):
        read_weights(tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=r"a whole Linear module.*not a state dict.*model\.state_dict"):
        read_weights(tmp_path / "m.pth", trust=True)


@pytest.mark.parametrize("trust", [False, True])
def test_a_torchscript_archive_is_refused(tmp_path: Path, trust: bool) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:  # torch.jit.save is deprecated; this marks its files
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/constants.pkl", b"")
    with pytest.raises(EdistillError, match="a TorchScript archive, not a state dict"):
        read_weights(tmp_path / "m.pt", trust)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, "its keys are epoch, optimizer"),
        ({}, "its keys are none"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"w": torch.ones(2), "note": "x"}, "note is a str"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=message):
        read_weights(tmp_path / "m.pth")


def test_empty_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(EdistillError, match="holds no tensors"):
        read_weights(tmp_path / "m.safetensors")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "without data"),
    ],
)
def test_tensors_without_plain_bytes_are_refused(tmp_path: Path, tensor: Tensor, kind: str) -> None:
    torch.save({"w": tensor}, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=f"w is {kind}"):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("kind", [".safetensors", "zip", "legacy"])
def test_files_cut_short_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / (f"m{kind}" if kind.startswith(".") else "m.pth")
    if kind == ".safetensors":
        save_file(a_state(), file)
    else:
        torch.save(a_state(), file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    for length in (0, 1, 7, 60, len(whole) // 2, len(whole) - 20):
        file.write_bytes(whole[:length])
        for trust in (False, True):
            with pytest.raises(EdistillError, match=r"m\.\w+ is (refused|not a checkpoint)"):
                read_weights(file, trust)


@given(position=st.integers(0, 500), value=st.integers(0, 255))
def test_damaged_legacy_files_are_read_or_refused(tmp_path_factory: Any, position: int, value: int) -> None:
    file = tmp_path_factory.mktemp("damaged") / "m.pth"
    torch.save(a_state(), file, _use_new_zipfile_serialization=False)
    content = bytearray(file.read_bytes())
    content[position] = value
    file.write_bytes(content)
    try:
        read_weights(file)
    except EdistillError as error:
        assert str(file) in str(error)  # noqa: PT017 - either outcome is right; nothing else may be raised


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.bin",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("m.pth", b"<!DOCTYPE html><html>", "m.pth is (refused|not a checkpoint)"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdistillError, match=message):
        read_weights(tmp_path / name)


def test_a_plain_tar_archive_is_refused(tmp_path: Path) -> None:
    torch.save(a_state(), tmp_path / "m.pth")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.add(tmp_path / "m.pth", "m.pth")
    with pytest.raises(EdistillError, match=r"tar archive.*Unpack it"):
        read_weights(tmp_path / "m.tar")


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdistillError, match="cannot be read: No such file"):
        read_weights(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("unable to mmap 96 bytes: Cannot allocate memory (12)")], ids=str
)
def test_a_file_for_which_there_is_no_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(path: Path) -> None:
        raise error

    save_file(a_state(), tmp_path / "m.safetensors")
    size = (tmp_path / "m.safetensors").stat().st_size
    monkeypatch.setattr(safetensors.torch, "load_file", fails)
    monkeypatch.setattr(memory, "on_machine", lambda: 1.5 * size)
    with pytest.raises(EdistillError, match=f"has {size / 1e3:.1f} kB.*{1.5 * size / 1e3:.1f} kB of memory are left"):
        read_weights(tmp_path / "m.safetensors")
    monkeypatch.setattr(memory, "on_machine", lambda: 2 * size)
    with pytest.raises(EdistillError, match="not a checkpoint that can be read"):
        read_weights(tmp_path / "m.safetensors")


# --- the digest -------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_weights_not_of_the_file(tmp_path: Path) -> None:
    state = a_state()
    save_file(state, tmp_path / "m.safetensors")
    torch.save({"module." + name: state[name] for name in reversed(state)}, tmp_path / "m.pth")
    strided = {**state, "stem.weight": state["stem.weight"].T.contiguous().T}
    assert not strided["stem.weight"].is_contiguous()
    files = (read_weights(tmp_path / name).state for name in ("m.safetensors", "m.pth"))
    assert {digest(each) for each in (*files, strided)} == {digest(state)}


def test_the_digest_sees_names_shapes_dtypes_and_values() -> None:
    changes: tuple[dict[str, Tensor], ...] = (
        {},
        {"head.bias": torch.zeros(3)},
        {"head.bias": torch.zeros(2)},
        {"head.bias": torch.zeros(1, 2)},
        {"head.bias": torch.zeros(2, dtype=torch.int32)},
        {"head.bias": torch.tensor([0.0, -0.0])},
        {"head.bias": torch.zeros(4, dtype=torch.bfloat16)},
        {"other": torch.tensor(1)},
    )
    digests = {digest(a_state() | change) for change in changes}
    assert len(digests) == len(changes)
    assert all(len(each) == 64 for each in digests)
