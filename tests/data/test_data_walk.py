"""Folders with links: each directory once, and a word about what was passed over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import make_folder, refused, settings

from ensemble_distill.data import open_inputs, open_source
from ensemble_distill.data.source import Source
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict


def images(root: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6), index, np.uint8)).save(root / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images(tmp_path / "data", "cat/1.png", "cat/2.png", "dog/1.png", "dog/inner/2.png")
    return tmp_path / "data"


def names(source: Source) -> list[str]:
    return [source.name(row) for row in range(len(source))]


PLAIN = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/inner/2.png"]


@pytest.mark.parametrize(
    ("link", "to"),
    [
        ("cat/up", ".."),  # the folder of all classes
        ("cat/self", "."),
        ("dog/inner/up", "../.."),
        ("dog/a", "inner"),  # comes before inner, and is not walked in its place
        ("cat/dogs", "../dog"),  # whose images are dogs
        ("cat/deep", "../dog/inner"),
    ],
)
def test_a_link_to_a_folder_of_the_walk_is_passed_over(root: Path, link: str, to: str) -> None:
    before = open_source(root)
    assert (names(before), list(before.remarks)) == (PLAIN, [])
    (root / link).symlink_to(to)
    source = open_source(root)
    assert names(source) == PLAIN
    assert source.digest == before.digest
    (remark,) = source.remarks
    assert "passed over" in remark


def test_links_to_files_and_to_folders_elsewhere_are_followed(root: Path, tmp_path: Path) -> None:
    images(tmp_path / "elsewhere", "3.png", "more/4.png")
    (root / "cat/linked.png").symlink_to(tmp_path / "elsewhere/3.png")
    (root / "cat/more").symlink_to(tmp_path / "elsewhere/more")
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    with_bird = ["bird/3.png", "bird/more/4.png", "cat/1.png", "cat/2.png", "cat/linked.png", *PLAIN[2:]]
    source = open_source(root)
    assert names(source) == with_bird
    assert "cat/more is passed over" in source.remarks[0]
    (root / "bird").unlink()
    source = open_source(root)
    assert names(source) == ["cat/1.png", "cat/2.png", "cat/linked.png", "cat/more/4.png", *PLAIN[2:]]
    assert not source.remarks


def test_two_classes_that_are_one_folder_are_refused(root: Path) -> None:
    (root / "puppy").symlink_to("dog")
    with refused("dog and", "puppy are one folder", "Remove the link"):
        open_source(root)
    (root / "puppy").unlink()
    assert names(open_source(root)) == PLAIN


def test_a_link_to_itself_is_no_image_and_no_folder(root: Path) -> None:
    (root / "cat/loop").symlink_to("loop")
    assert names(open_source(root)) == PLAIN


def test_what_is_passed_over_is_warned_of_by_every_command_that_reads(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 12})
    images(folder / "pictures", *(f"{c}/{i}.png" for c in "012" for i in range(4)))
    (folder / "pictures/1/up").symlink_to("..")
    progress = Silent()
    cache_logits(
        settings(folder, {"data.train": str(folder / "pictures"), "views.transform": "mixup"}), progress=progress
    )
    (warning,) = progress.warnings
    assert warning.startswith("data.train: ")
    assert "1/up is passed over" in warning
    assert "1/up is passed over" in inspect(folder / "pictures")["remarks"][0]
    assert open_inputs([str(folder / "pictures")]).remarks


# --- names and folders that cannot be read ----------------------------------------------------------------------


def test_names_that_are_no_utf_8_are_names(root: Path) -> None:
    """How they are shown is `render`'s; here they open, count and are told apart."""
    content = (root / "cat/1.png").read_bytes()
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/\xff.png")).write_bytes(content)
    before = open_source(root)
    assert before.item(2).x.shape == (6, 6, 3)
    assert len(before.digest) == 64
    (root / "dog").rename(os.fsdecode(os.fsencode(root) + b"/\xfe"))
    source = open_source(root)
    assert (len(source), source.classes) == (5, ("cat", "\udcfe"))
    assert len({before.digest, source.digest}) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_one_message(root: Path) -> None:
    (root / "cat").chmod(0)
    with refused("cannot be listed", "permit reading it"):
        open_source(root)
    (root / "cat").chmod(0o755)
    assert_array_equal(open_source(root).labels, [0, 0, 1, 1])  # type: ignore[arg-type]


def test_a_name_that_no_file_can_have_does_not_exist() -> None:
    for text in ("a" * 5000, "a/" * 5000, "a\0b"):
        with refused("does not exist"):
            open_source(text)
        with refused("There is no"):
            open_inputs([text])


def test_predict_passes_over_the_same_and_says_so(root: Path, digits_session: Path) -> None:
    (root / "cat/up").symlink_to("..")
    progress = Silent()
    rows = predict(digits_session / "runs/hydra-s0/export/model.onnx", [str(root)], progress).rows
    assert [row["row"] for row in rows] == PLAIN
    assert "cat/up is passed over" in progress.warnings[0]
