"""Numbers beyond all use and files that are no settings: each is one message, at once, and its remedy works."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tiny import refused
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import SIDE, Preprocessing
from ensemble_distill.methods import method_names, open_method
from ensemble_distill.settings import Settings, load_settings, settings_toml
from ensemble_distill.settings.assignments import parse_assignment
from ensemble_distill.settings.messages import DEEPEST, shown
from ensemble_distill.settings.schema import kebab
from ensemble_distill.workspace import Workspace


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "edistill.toml").write_text("")
    return tmp_path / "edistill.toml"


# --- numbers ----------------------------------------------------------------------------------------------------


def numeric(section: type[BaseModel], before: str = "") -> Iterator[tuple[str, int]]:
    """Every key of a number, and how many make a list of them; 0 for one alone."""
    for name, field in section.model_fields.items():
        key = f"{before}{kebab(name)}"
        for annotation in parts(field.annotation):
            if annotation in (int, float):
                yield key, 0
            elif getattr(annotation, "__origin__", None) is tuple and {int, float} & set(map(bare, inner(annotation))):
                yield key, 1 if Ellipsis in get_args(annotation) else len(get_args(annotation))
            elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from numeric(annotation, f"{key}.")


def parts(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, tuples whole."""
    if getattr(annotation, "__origin__", None) in (tuple, dict) or not get_args(annotation):
        yield annotation
        return
    for part in get_args(annotation):
        yield from parts(part)


def inner(annotation: Any) -> list[Any]:
    return [part for part in get_args(annotation) if part is not Ellipsis]


def bare(annotation: Any) -> Any:
    return bare(get_args(annotation)[0]) if get_args(annotation) else annotation


NUMBERS = sorted(set(numeric(Settings)))
# what is neither a slip nor harmful: targets have any unit, and seeds any sign
ALLOWED = {
    "teachers.standardized.mean": {-1, 10**18},
    "teachers.standardized.std": {10**18},
    "teachers.variance": {10**18},
    "teachers.weights": {10**18},
    "teachers.preprocessing.mean": {-1},
    "student.preprocessing.mean": {-1},
    "views.seed": {-1, 10**18},
    "data.split.seed": {-1, 10**18},
    "train.lr": {10**18},  # at which a step tells that the loss is no number
    "train.seed": {10**18},
}
REGRESSION = {"task": "regression", "teachers.output": "mean", "teachers.variance": 1.0}


def test_the_numbers_of_the_file_are_all_found() -> None:
    keys = {key for key, _ in NUMBERS}
    assert {"train.epochs", "student.heads", "student.heads.rank", "teachers.preprocessing.size"} <= keys
    assert {f"train.{flag}" for flag in ("batch-size", "workers", "lr", "seed", "generations")} <= keys
    assert "train.method" not in keys


@pytest.mark.parametrize("value", [10**18, -1, math.nan, math.inf, 10**400, True])
def test_a_number_beyond_all_bounds_is_refused_at_once(value: float, toml: Path) -> None:
    for key, length in NUMBERS:
        given = [value] * length if length else value
        others = REGRESSION if key.startswith(("teachers.standardized", "teachers.variance")) else {}
        if key.startswith("teachers.standardized."):
            others = {**others, "teachers.standardized": {"mean": 1.0, "std": 1.0}}
        if key.startswith("data.split."):
            others = {"data.all": "a.csv", "data.split": {"test": 0.5}}
        if not isinstance(value, bool) and value in ALLOWED.get(key, ()):
            load_settings(toml, {**others, key: given})
            continue
        with pytest.raises(EdistillError, match=rf"\A{re.escape(key)}") as told:
            load_settings(toml, {**others, key: given})
        text = str(told.value)
        assert len(text) < 400
        assert "\n" not in text
        if value == 10**18:
            assert "less than" in text, key  # and so the bound


def test_options_of_methods_are_bounded_too(toml: Path) -> None:
    for name, value in itertools.product(method_names(), (10**18, -1, 2.5)):
        fields = open_method(name).Options.model_fields
        numbers = [key for key, field in fields.items() if {int, float} & set(parts(field.annotation))]
        for option in numbers:
            if (option, value) in (("temperature", 2.5), ("max_precision", 2.5), ("first_temperature", 2.5)):
                continue
            if value == 2.5 and option in ("ridge", "deviation_weight", "label_weight"):
                continue
            with refused(f"method.{kebab(option)} is "):
                _ = Workspace(load_settings(toml, {"train.method": name, f"method.{kebab(option)}": value})).method


def test_a_flag_is_bounded_as_its_key_is(toml: Path) -> None:
    for flag in ("epochs", "batch-size", "workers", "generations", "seed"):
        done = CliRunner().invoke(app, ["train", "-c", str(toml), f"--{flag}", str(10**25)])
        assert done.exit_code == 2, flag
        assert "less than" in done.output


def test_a_size_that_another_file_gives_is_bounded_alike() -> None:
    Preprocessing((SIDE, SIDE), (0.5,), (0.5,))
    with refused("preprocessing.size is [1000000, 1000000]", "at most 16384"):
        Preprocessing((10**6, 10**6), (0.5,), (0.5,))


def test_many_head_layers_are_too_many(toml: Path) -> None:
    with refused("student.heads", "64"):
        load_settings(toml, {"student.heads": [1] * 10_000})


def test_a_bound_that_is_obeyed_lets_go_on(toml: Path) -> None:
    with refused("train.workers is 100000: input should be less than or equal to 256"):
        load_settings(toml, {"train.workers": 10**5})
    assert load_settings(toml, {"train.workers": 256}).train.workers == 256


# --- files ------------------------------------------------------------------------------------------------------

DEEP = "[" * 5000 + "]" * 5000
BROKEN: dict[str, tuple[bytes, str]] = {
    "deep lists": (f"x = {DEEP}".encode(), "is not valid TOML"),
    "deep tables": ("student.kwargs." + ".".join("a" * 3000) + " = 1\n").encode()
    and (
        ("[student.kwargs." + ".".join("a" * 3000) + "]\n").encode(),
        "holds tables or lists in",
    ),
    "Latin-1": ('task = "régression"'.encode("latin-1"), "is not valid TOML"),
    "half a character": (b'task = "\xff\xfe', "is not valid TOML"),
    "UTF-16": ('task = "regression"'.encode("utf-16"), "is not valid TOML"),
    "a number of 5,000 digits": (b"train.epochs = " + b"1" * 5000, "is not valid TOML"),
    "a number of 5,000 hexadecimal digits": (b"train.epochs = 0x" + b"f" * 5000, "train.epochs is a"),
    "a long text": (b'train.epochs = "' + b"a" * 10**5 + b'"', "train.epochs is 'aaa"),
    "nan in a list": (b"student.kwargs = { a = [1.0, [nan]] }", "student.kwargs.a is nan"),
    "nothing but zeros": (b"\0" * 100, "is not valid TOML"),
    "a null character in a path": (b'output.cache = "a\\u0000b"', "no path has a null character"),
    "a name that is too long": (b'teachers.path = "' + b"a" * 300 + b'"', "longer than 255 bytes"),
    "nobody's home": (b'output.runs = "~nobody-is-called-this/runs"', "no such home folder"),
}


@pytest.mark.thorough
def test_a_file_that_holds_no_settings_is_one_short_message(toml: Path) -> None:
    for case, (content, told) in BROKEN.items():
        toml.write_bytes(content)
        with pytest.raises(EdistillError) as caught:
            load_settings(toml)
        assert told in str(caught.value), case
        assert len(str(caught.value)) < 600, case


def test_tables_as_deep_as_they_may_be_are_written_and_read_again(toml: Path) -> None:
    value: Any = 1
    for _ in range(DEEPEST - 3):
        value = [value]
    made = load_settings(toml, {"student.kwargs": {"a": value}})
    toml.write_text(settings_toml(made, toml.parent))
    assert load_settings(toml).student.kwargs == {"a": value}
    with refused("student.kwargs.a", f"in {DEEPEST} others", "fewer levels"):
        load_settings(toml, {"student.kwargs": {"a": [[[[value]]]]}})


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    path.chmod(0)


@pytest.mark.parametrize(("spoil", "told"), [(a_folder, "is a folder, and settings are a file"), (unreadable, "read")])
def test_what_stands_in_the_files_place(spoil: Callable[[Path], None], told: str, toml: Path) -> None:
    spoil(toml)
    with refused(str(toml), told, "pass -c FILE"):
        load_settings(toml.parent)
    (toml.parent / "other.toml").write_text("")
    assert load_settings(toml.parent / "other.toml") is not None


def test_an_assignment_of_too_many_brackets_is_no_traceback(toml: Path) -> None:
    key, value = parse_assignment(f"student.kwargs={DEEP}")
    with refused("student.kwargs is", "it should be a table"):
        load_settings(toml, {key: value})


def test_what_is_shown_of_a_value_is_short() -> None:
    assert shown([1, 2]) == "[1, 2]"
    assert len(shown("a" * 1000)) < 220
    assert shown(16**5000) == "a int that is too long to show"
