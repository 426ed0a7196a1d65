"""Where `predict -o` writes, and that it never destroys what it reads, nor anything else that it did not write."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import message_of
from PIL import Image
from tiny import contents
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app

MODEL = "runs/hydra-s0/export/model.onnx"


def predict(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(f"predict {line}"))


@pytest.fixture(scope="module")
def made(digits_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported student, an `.npz`, and images in a folder and below it."""
    folder = tmp_path_factory.mktemp("predict") / "here"
    (folder / MODEL).parent.mkdir(parents=True)
    shutil.copy(digits_session / MODEL, folder / MODEL)
    pixels = np.load(digits_session / "data/test.npz")["x"][:3]
    np.savez(folder / "some.npz", x=pixels)
    for name in ("im/zero/a.png", "im/one/b.png", "flat/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / name)
    (folder / "source.py").write_text(
        "import numpy as np\n\n\ndef make():\n    return [np.zeros((8, 8, 1), np.uint8)]\n"
    )
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


def as_it_is(path: Path) -> Path:
    return path


def in_another_spelling(path: Path) -> Path:
    return Path("im/../") / path


def by_a_link(path: Path) -> Path:
    Path("link").symlink_to(path.absolute())
    return Path("link")


def by_a_hard_link(path: Path) -> Path:
    os.link(path, "hard")
    return Path("hard")


def by_a_link_to_its_folder(path: Path) -> Path:
    Path("folder").symlink_to(path.parent.absolute())
    return Path("folder") / path.name


READ = {
    "the model": (f"some.npz -m {MODEL}", MODEL),
    "the model of a run": ("some.npz -m runs/hydra-s0", MODEL),
    "an npz": (f"some.npz -m {MODEL}", "some.npz"),
    "an image": (f"flat/a.png -m {MODEL}", "flat/a.png"),
    "an image in a folder": (f"flat -m {MODEL}", "flat/a.png"),
    "an image in a class folder": (f"im -m {MODEL}", "im/one/b.png"),
    "a factory": (f"source.py:make -m {MODEL}", "source.py"),
}


NAMED = [as_it_is, in_another_spelling, by_a_link, by_a_hard_link, by_a_link_to_its_folder]


@pytest.mark.parametrize(("what", "named"), list(zip(READ, itertools.cycle(NAMED), strict=False)))
def test_what_is_read_is_not_written(here: Path, what: str, named: Callable[[Path], Path]) -> None:
    line, read = READ[what]
    target = named(Path(read))
    before = contents(here)
    for more in ("", "--overwrite"):
        result = predict(f"{line} -o {target} {more}")
        assert result.exit_code == 2
        assert f"{target} is one of the files that are read. Name another to write." in message_of(result.stderr)
        assert contents(here) == before


@pytest.mark.parametrize("style", ["csv", "json"])
def test_the_same_command_can_be_run_again(here: Path, style: str) -> None:
    for _ in range(2):
        assert predict(f"some.npz -m {MODEL} --format {style} -o out").exit_code == 0
    first = Path("out").read_text()
    assert first == predict(f"some.npz -m {MODEL} --format {style}").stdout
    other = "json" if style == "csv" else "csv"
    assert predict(f"flat -m {MODEL} --format {other} -o out").exit_code == 0
    assert Path("out").read_text() == predict(f"flat -m {MODEL} --format {other}").stdout


@pytest.mark.parametrize(
    "content", ["mine\n", "row,mine\n1,2\n", "row,class,probability,mine\n", '[{"mine": 1}]', "[1, 2]", "\n"]
)
def test_what_predict_did_not_write_needs_a_flag(here: Path, content: str) -> None:
    Path("notes").write_text(content)
    result = predict(f"some.npz -m {MODEL} -o notes")
    assert result.exit_code == 2
    assert "notes is there, and it is nothing that predict wrote. Name another file, or pass --overwrite" in message_of(
        result.stderr
    )
    assert Path("notes").read_text() == content
    assert predict(f"some.npz -m {MODEL} -o notes --overwrite").exit_code == 0
    assert Path("notes").read_text() == predict(f"some.npz -m {MODEL}").stdout


def test_an_empty_file_is_nothing_to_lose(here: Path) -> None:
    Path("made-by-mktemp").touch(0o600)
    assert predict(f"some.npz -m {MODEL} -o made-by-mktemp").exit_code == 0
    assert Path("made-by-mktemp").stat().st_mode & 0o777 == 0o600


def test_a_new_file_in_the_folder_of_images_is_no_image(here: Path) -> None:
    result = predict(f"flat -m {MODEL} -o flat/b.PNG")
    assert result.exit_code == 2
    assert "flat/b.PNG would be read as an image the next time. Name a file that ends in .csv or .json." in message_of(
        result.stderr
    )
    for _ in range(2):
        assert predict(f"flat -m {MODEL} -o flat/b.csv").exit_code == 0
    assert len(Path("flat/b.csv").read_text().splitlines()) == 2


def test_a_folder_and_a_file_in_none_are_refused_before_anything_is_read(here: Path) -> None:
    assert "flat is a folder. Name a file to write." in message_of(
        predict("nothing.npz -m nothing.onnx -o flat").stderr
    )
    Path("link").symlink_to("nowhere/out.csv")
    for name in ("nowhere/out.csv", "link"):
        assert "is not a folder, so" in predict(f"nothing.npz -m nothing.onnx -o {name}").stderr


def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != here / "flat")
    told = message_of(predict("nothing.npz -m nothing.onnx -o flat/out.csv").stderr)
    assert "flat/out.csv: nothing may be written to flat. Name a file in another folder." in told
    assert "There is no nothing.onnx" in message_of(predict("nothing.npz -m nothing.onnx -o out.csv").stderr)


def test_a_link_to_nothing_yet_is_filled_and_stays(here: Path) -> None:
    Path("link").symlink_to(here / "flat" / "out.csv")
    for _ in range(2):
        assert predict(f"some.npz -m {MODEL} -o link").exit_code == 0
    assert Path("link").is_symlink()
    assert Path("flat/out.csv").read_text() == predict(f"some.npz -m {MODEL}").stdout


def test_links_in_a_circle_are_one_message(here: Path) -> None:
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    result = predict(f"some.npz -m {MODEL} -o a")
    assert result.exit_code in (0, 2)
    assert not isinstance(result.exception, RuntimeError)


@pytest.mark.thorough
def test_what_stdout_is_stays_and_gets_no_more_than_the_result(here: Path) -> None:
    """In a process of its own: the file that its stdout is has something before and after."""
    program = "import sys; from ensemble_distill.cli.app import app; app(sys.argv[1:])"
    told = predict(f"some.npz -m {MODEL}").stdout
    for target in ("/dev/stdout", "/dev/fd/1"):
        with Path("log").open("wb") as log:
            log.write(b"before\n")
            log.flush()
            line = ["predict", "some.npz", "-m", MODEL, "-o", target]
            path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            subprocess.run([sys.executable, "-c", program, *line], stdout=log, check=True, env=path)
            log.write(b"after\n")
        assert Path("log").read_text() == f"before\n{told}after\n"


def test_a_pipe_gets_the_result(here: Path) -> None:
    os.mkfifo("pipe")
    reading = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert predict(f"some.npz -m {MODEL} -o pipe").exit_code == 0
    assert os.read(reading, 1 << 16).decode() == predict(f"some.npz -m {MODEL}").stdout
    os.close(reading)
    assert Path("pipe").is_fifo()
