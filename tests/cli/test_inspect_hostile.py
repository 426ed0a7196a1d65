"""`inspect` of every kind of path, and values on the command line that nobody means: one message each, at once."""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import message_of
from PIL import Image
from tiny import make_folder
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app
from ensemble_distill.workflows.inspect import inspect

DEEP = 100_000
LISTS, TABLES = "[" * DEEP, '{"a":' * DEEP
SUFFIXES = [
    "json",
    "toml",
    "yaml",
    "npz",
    "npy",
    "safetensors",
    "pth",
    "pt",
    "bin",
    "ckpt",
    "pth.tar",
    "png",
    "onnx",
    "x",
]


def edistill(*line: str) -> Result:
    return CliRunner().invoke(app, list(line))


def one_message(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    return message_of(result.stderr)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- paths ------------------------------------------------------------------------------------------------------


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


KINDS: dict[str, Callable[[Path], None]] = {
    "an empty file": lambda path: path.write_bytes(b""),
    "a binary file": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "a deep file": lambda path: path.write_text(LISTS),
    "10 GB of nothing": sparse,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "an empty folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_path_is_one_message(here: Path, kind: str) -> None:
    for suffix in SUFFIXES:
        path = Path(f"it.{suffix}")
        KINDS[kind](path)
        message = one_message(edistill("inspect", str(path)))
        assert "nested too deeply, or code" not in message, "the file is named"
        assert str(path) in message
        if kind in ("a pipe", "a link to a device"):
            assert "neither a file nor a folder" in message


def test_a_name_of_nothing_is_one_message(here: Path) -> None:
    for name in ("x" * 300, "x" * 5000, "a\nb", "\x1b[2J", "", " ", "-", "nothing\udcff"):
        one_message(edistill("inspect", "--", name))


def files(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        (folder / name.replace("_dot_", ".")).write_text(content)


def pipe_inside(name: str) -> Callable[[Path], None]:
    return lambda folder: os.mkfifo(folder / name)


FOLDERS: dict[str, Callable[[Path], None]] = {
    **{
        f"{file} that is {what}": lambda folder, file=file, content=content: files(  # type: ignore[misc]
            folder, **{file: content, "args.toml": "", "last.pth.tar": "x", "model.safetensors": "x"}
        )
        for file in ("config.json", "args.yaml", "manifest.json")
        for what, content in {
            "deep lists": LISTS,
            "deep tables": TABLES,
            "a number": "7",
            "null": "null",
            "an empty list": "[]",
            "a list": "[1]",
            "an empty table": "{}",
            "no date": "a: 2001-99-99",
            "of many digits": "1" * 5000,
            "empty": "",
        }.items()
    },
    "a timm run whose args are deep": lambda folder: files(folder, **{"args.yaml": LISTS, "last.pth.tar": "x"}),
    "a timm run without a date": lambda folder: files(folder, **{"args.yaml": "a: 2001-99-99", "last.pth.tar": "x"}),
    "a model's config that is deep": lambda folder: files(folder, **{"config.json": TABLES, "model.safetensors": "x"}),
    "a pipe for a manifest": pipe_inside("manifest.json"),
    "a pipe for settings of a run": pipe_inside("args.toml"),
    "a pipe for a config": pipe_inside("config.json"),
    "a pipe for a member": pipe_inside("member.safetensors"),
    "a pipe for a picture": pipe_inside("a.png"),
    "no picture": lambda folder: files(folder, **{"a.png": "no picture"}),
}


@pytest.mark.thorough
def test_every_kind_of_folder_is_one_message(here: Path) -> None:
    for number, (kind, fill) in enumerate(FOLDERS.items()):
        folder = here / f"folder-{number}"
        folder.mkdir()
        fill(folder)
        message = one_message(edistill("inspect", folder.name))
        assert folder.name in message, kind
        assert "nested too deeply, or code" not in message, "the file is named"


def test_an_exported_file_of_odd_metadata(here: Path) -> None:
    for value in (LISTS, "7", "{", "[]", "null", '"x"', ""):
        header = json.dumps({"__metadata__": {"edistill": value}}).encode()
        Path("it.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        assert "it.safetensors is damaged" in one_message(edistill("inspect", "it.safetensors"))


def test_a_pipe_among_pictures_is_passed_over(here: Path) -> None:
    for name in ("cat", "dog"):
        (here / "photos" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(here / "photos" / name / "0.png")
        os.mkfifo(here / "photos" / name / "1.png")
    assert inspect(here / "photos")["rows"] == 2


@pytest.mark.parametrize("name", ["rows.npz", "rows.npy"])
def test_data_that_is_a_pipe_is_refused_everywhere(here: Path, name: str) -> None:
    folder = make_folder(here / "tiny")
    os.chdir(folder)
    os.mkfifo(name)
    entry = f'data.test="{name}"' if name == "rows.npz" else f'data.test={{source="data/test.npz",rows="{name}"}}'
    assert "neither a file nor a folder" in one_message(edistill("cache-logits", "--set", entry))
    assert edistill("cache-logits").exit_code == 0, "and without it all goes on"


# --- values -----------------------------------------------------------------------------------------------------

VALUES = [
    LISTS,
    "{a=" * 10_000,
    "[" * 200 + "]" * 200,
    "1" * 5000,
    "0x" + "f" * 5000,
    "1e999",
    '"a\\u0000b"',
    '"a\\nb"',
    "a\nb",
    "a\x1b[2Jb",
    "x" * 10_000,
    "1979-05-27",
    "07:32:00",
    "2001-99-99",
    "[[]]",
    "{}",
    "{a={}}",
    "true",
    "-1",
    "''",
]
PLACES = ["train.epochs", "train.lr", "data.test", "teachers.path", "teachers.model", "student.kwargs", "output.name"]
PLACES += ["output.runs", "views.transform", "method", "data.ood.x", "student.heads", "cache.dtype", "train.method"]


@pytest.mark.thorough
def test_set_takes_any_text_and_says_what_is_wrong(here: Path) -> None:
    make_folder(here / "tiny")
    os.chdir("tiny")
    for number, key in enumerate(PLACES):
        for value in VALUES[number % 3 :: 3]:
            one_message(edistill("train", "--set", f"{key}={value}"))  # there is no cache: it never comes to training


def test_a_key_of_nothing_is_one_message(here: Path) -> None:
    make_folder(here / "tiny")
    os.chdir("tiny")
    for key in ("", ".", "..", "a..b", "train.", ".train", "a" * 5000, ".".join("a" * 2000), "\x1b", "a b"):
        one_message(edistill("train", "--set", f"{key}=3"))
        one_message(edistill("train", "--set", f"{key}="))


def test_settings_that_cannot_be_read(here: Path) -> None:
    for text in ("a = " + LISTS, "a = " + "1" * 5000, "a = 0x" + "f" * 5000, "\0", "a = {" * DEEP):
        Path("edistill.toml").write_text(text)
        for line in (["train"], ["train", "-c", "."], ["inspect", "edistill.toml"], ["predict", "x.npz"]):
            one_message(edistill(*line))


def test_settings_that_are_no_file(here: Path) -> None:
    for number, kind in enumerate(set(KINDS) - {"10 GB of nothing"}):  # TOML has no size at which it is none
        KINDS[kind](Path(f"it-{number}"))
        one_message(edistill("train", "-c", f"it-{number}"))


@pytest.mark.thorough
def test_every_flag_takes_any_text(here: Path) -> None:
    make_folder(here / "tiny")
    os.chdir("tiny")
    flags = ("--config", "--name", "--device", "--method", "--opt", "--teacher", "--share")
    values = ("", "a\nb", "\x1b[2J", "x" * 5000, "../..", "nothing\udcff", "=", "a=b=c")
    for flag, value in itertools.product(flags, values):
        one_message(edistill("train", flag, value))
