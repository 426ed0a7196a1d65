"""`edistill.toml` as settings: what parses, what is refused and in which words, paths, overrides, and the copy back."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import (
    DataEntry,
    Settings,
    load_settings,
    settings_from,
    settings_toml,
)
from ensemble_distill.settings.assignments import parse_assignment

# every key that a user may rely on, none at its default
WHOLE = """
task = "classification"
[teachers]
path = "ensemble"
model = "model.py:make_teacher"
model-kwargs = { num_classes = 10 }
output = "probabilities"
preprocessing = { mean = [0.5], std = [0.5], size = [28, 28] }
average = "logits"
weights = [1.0, 2.0]
[data]
train = "data/train"
validation = "data/val.npz"
test = "data/test"
calibration = { source = "data/train", rows = "unseen.npy" }
transfer = "data/unlabeled"
ood = { svhn = "data/svhn", noise = { source = "data/all.npz", x = "noise_x", y = "noise_y" } }
[views]
count = 3
transform = "crop-flip+mixup"
seed = 5
[student]
model = "model.py:make_body"
kwargs = { width = 7 }
init = "member-00"
heads = [100, 100]
[cache]
dtype = "float32"
[train]
method = "hydra"
epochs = 21
batch-size = 64
opt = "sgd"
lr = 0.1
sched = "poly"
warmup-epochs = 1.5
weight-decay = 0.1
amp = true
model-ema = true
device = "cpu"
workers = 2
seed = 9
[method]
temperature = 4.0
[output]
cache = "logits"
runs = "students"
"""


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(EdistillError) as caught:
        settings_from(values, root=Path("/place"), named="edistill.toml")
    return str(caught.value)


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


# --- what parses ------------------------------------------------------------------------------------------------


def test_every_fixed_key_arrives(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text(WHOLE)
    settings = load_settings(tmp_path / "edistill.toml")
    values = settings.model_dump(by_alias=True)
    written = tomllib.loads(WHOLE)
    for table in ("views", "cache", "method", "train"):
        for key, value in written[table].items():
            assert values[table][key] == value, f"{table}.{key}"
    teachers, student, data = settings.teachers, settings.student, settings.data
    assert (teachers.model_kwargs, teachers.output, teachers.average) == (
        {"num_classes": 10},
        "probabilities",
        "logits",
    )
    assert teachers.weights == (1.0, 2.0)
    assert teachers.preprocessing is not None
    assert (teachers.preprocessing.size, teachers.preprocessing.crop_pct) == ((28, 28), None)
    assert (student.kwargs, student.init, student.heads) == ({"width": 7}, "member-00", (100, 100))
    assert data.calibration == DataEntry(source=str(tmp_path / "data/train"), rows=str(tmp_path / "unseen.npy"))
    noise = data.ood["noise"]
    assert isinstance(noise, DataEntry)
    assert (noise.source, noise.x, noise.y) == (str(tmp_path / "data/all.npz"), "noise_x", "noise_y")
    assert list(settings.splits()) == [
        *("train", "validation", "test", "calibration", "transfer"),
        *("ood/svhn", "ood/noise"),
    ]


def test_an_empty_file_has_every_default(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text("")
    settings = load_settings(tmp_path)
    assert settings.teachers.path == str(tmp_path / "teachers")
    assert (settings.output.cache, settings.output.runs) == (str(tmp_path / "cache"), str(tmp_path / "runs"))
    assert settings.splits() == {}


def test_the_underscored_spelling_of_a_key_is_the_same_key() -> None:
    assert settings_from({"train": {"batch_size": 3}}, Path("/")).train.batch_size == 3


# --- paths ------------------------------------------------------------------------------------------------------


def test_data_is_a_path_from_the_file_or_a_factory() -> None:
    for written, found in [
        ("data/train", "/place/data/train"),
        ("../other/train.npz", "/other/train.npz"),
        ("/absolute/train", "/absolute/train"),
        ("~/train", str(Path.home() / "train")),
        ("loaders.py:make", "/place/loaders.py:make"),
        ("../loaders.py:make", "/loaders.py:make"),
        ("~/loaders.py:make", f"{Path.home()}/loaders.py:make"),
        ("package.module:make", "package.module:make"),
    ]:
        settings = settings_from({"data": {"train": written, "test": {"source": written}}}, Path("/place"))
        assert settings.data.train == found
        assert settings.data.test == DataEntry(source=found)


def test_a_model_is_a_timm_name_or_a_factory() -> None:
    for written, found in [
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18", "hf-hub:timm/resnet18"),
        ("model.py:make", "/place/model.py:make"),
        ("sub/model.py:make", "/place/sub/model.py:make"),
        ("package.module:make", "package.module:make"),
    ]:
        values = {"teachers": {"model": written}, "student": {"model": written}}
        settings = settings_from(values, Path("/place"))
        assert (settings.teachers.model, settings.student.model) == (found, found)


def test_a_relative_config_makes_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.toml").write_text('data.train = "x.npz"')
    monkeypatch.chdir(tmp_path)
    for file in (Path("folder/mine.toml"), "folder/mine.toml"):
        assert load_settings(file).data.train == str(tmp_path / "folder" / "x.npz")


# --- the copy ---------------------------------------------------------------------------------------------------


def test_a_copy_in_another_folder_replays(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "a" / "b"
    home.mkdir()
    away.mkdir(parents=True)
    for text in (
        WHOLE,
        "",
        'student.model = "resnet18"\ndata.test = "package.module:make"\nviews.transform = "v.py:make"',
    ):
        (home / "edistill.toml").write_text(text)
        settings = load_settings(home)
        copy = settings_toml(settings, away)
        (away / "args.toml").write_text(copy)
        assert load_settings(away / "args.toml") == settings
        assert str(tmp_path) not in copy, "an absolute path does not travel"


def test_a_moved_folder_keeps_its_copy_valid(tmp_path: Path) -> None:
    (tmp_path / "was" / "runs").mkdir(parents=True)
    (tmp_path / "was" / "edistill.toml").write_text(WHOLE)
    copy = settings_toml(load_settings(tmp_path / "was"), tmp_path / "was" / "runs")
    (tmp_path / "was" / "runs" / "args.toml").write_text(copy)
    (tmp_path / "was").rename(tmp_path / "now")
    assert load_settings(tmp_path / "now/runs/args.toml") == load_settings(tmp_path / "now/edistill.toml")


# --- unknown keys -----------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    for key, meant in [
        ("tran", "train"),
        ("tran.epochs", "train"),
        ("train.epoch", "train.epochs"),
        ("train.batchsize", "train.batch-size"),
        ("epochs", "train.epochs"),
        ("views.epochs", "train.epochs"),
        ("data.trian", "data.train"),
        ("data.train.sauce", "data.train.source"),
        ("data.ood.svhn.sauce", "data.ood.svhn.source"),
        ("teachers.preprocessing.sise", "teachers.preprocessing.size"),
        ("teachers.kwargs", "teachers.model-kwargs"),
        ("student.pre_processing", "student.preprocessing"),
        ("output.cahe", "output.cache"),
    ]:
        unknown = key.removesuffix(".epochs") if key == "tran.epochs" else key
        assert refusal(nested(key, "value")) == f"edistill.toml: unknown key {unknown}. Did you mean {meant}?"


def test_without_a_near_key_the_table_is_listed() -> None:
    assert (
        refusal({"views": {"qqqq": 1}})
        == "edistill.toml: unknown key views.qqqq. Valid keys of views are count, transform, seed."
    )
    assert re.search(r"Valid keys are task, limit, teachers, data, .*output\.$", refusal({"qqqq": 1}))


def test_an_unknown_key_is_told_before_a_wrong_value() -> None:
    assert "unknown key views.cuont" in refusal({"train": {"epochs": 0}, "views": {"cuont": 2}})


# --- wrong values -----------------------------------------------------------------------------------------------


def test_a_value_outside_its_domain_is_refused_with_both() -> None:
    for key, value, told in [
        ("task", "clustering", "task is 'clustering': it should be classification or "),
        (
            "teachers.output",
            "scores",
            "teachers.output is 'scores': input should be 'logits', 'probabilities', 'mean', 'mean-variance' or "
            "'mean-logvar'.",
        ),
        ("teachers.average", "median", "input should be 'probabilities' or 'logits'"),
        ("teachers.weights", [1, "a"], "teachers.weights.1 is 'a': input should be a valid number"),
        ("teachers.preprocessing", {"size": [8]}, "teachers.preprocessing.size.1 is missing from [8]."),
        ("teachers", 3, "teachers is 3: it should be a table."),
        ("data.train", 3, "data.train is 3: it should be a string."),
        ("data.train", {"rows": "r.npy"}, "data.train.source is missing from {'rows': 'r.npy'}."),
        ("data.test", {"source": "a", "rows": 3}, "data.test.rows is 3: it should be a string."),
        ("data.ood", "svhn", "data.ood is 'svhn': it should be a table."),
        ("data.ood", {"svhn": 3}, "data.ood.svhn is 3: it should be a string."),
        ("views.count", 0, "views.count is 0: input should be greater than or equal to 1."),
        ("student.heads", "layer4", "student.heads is 'layer4': input should be 'last-stage'."),
        ("student.heads", 3, "student.heads is 3: it should be a list."),
        ("student.heads", {"rank": True}, "student.heads.rank is True: it should be a number."),
        ("student.init", [], "student.init is []: tuple should have at least 1 item"),
        ("student.init", [1, 2], "student.init.0 is 1: it should be a string."),
        ("student.init", 3, "student.init is 3: it should be a string."),
        ("views.count", True, "views.count is True: it should be a number."),
        ("train.lr", True, "train.lr is True: it should be a number."),
        ("train.amp", 0, "train.amp is 0: it should be true or false."),
        ("student.heads.rank", 0, "student.heads.rank is 0: input should be greater than or equal to 1."),
        ("student.heads", [10, 0], "student.heads.1 is 0: input should be greater than or equal to 1."),
        ("cache.dtype", "bfloat16", "cache.dtype is 'bfloat16': input should be 'float16' or 'float32'."),
        ("cache.batch-size", 0, "cache.batch-size is 0"),
        ("train.epochs", 2.5, "train.epochs is 2.5: input should be a valid integer"),
        ("train.epochs", "three", "train.epochs is 'three': input should be a valid integer"),
        ("train.batch-size", -1, "train.batch-size is -1: input should be greater than or equal to 1."),
        ("train.workers", -1, "train.workers is -1"),
        ("train.lr", 0, "train.lr is 0: input should be greater than 0."),
        ("train.lr", float("nan"), "train.lr is nan: input should be a finite number."),
        ("train.weight-decay", float("inf"), "train.weight-decay is inf: input should be a finite number."),
        ("train.warmup-epochs", -0.5, "train.warmup-epochs is -0.5"),
        (
            "train.sched",
            "step",
            "train.sched is 'step': input should be 'cosine', 'tanh', 'poly', 'plateau' or 'none'.",
        ),
        ("train.model-ema-decay", 1.0, "train.model-ema-decay is 1.0: input should be less than 1."),
        ("train.amp-dtype", "float8", "train.amp-dtype is 'float8': input should be 'bfloat16' or 'float16'."),
        ("method", 3, "method is 3: it should be a table."),
    ]:
        message = refusal(nested(key, value))
        assert message.startswith("edistill.toml: ")
        assert told in message


# --- the file ---------------------------------------------------------------------------------------------------


def test_without_a_file_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    remedy = "Pass -c FILE, or run edistill quickstart for a folder with a working one to edit."
    with pytest.raises(EdistillError, match=re.escape(f"There is no edistill.toml here. {remedy}")):
        load_settings()
    for file in (Path("other.toml"), tmp_path):
        with pytest.raises(EdistillError, match=rf"There is no \S+\.toml\. {re.escape(remedy)}"):
            load_settings(file)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    for content in [b"task = ", b"[train]\nlr = 1\nlr = 2", b"\xff\xfe"]:
        (tmp_path / "edistill.toml").write_bytes(content)
        with pytest.raises(EdistillError, match=r"edistill\.toml is not valid TOML: .+"):
            load_settings(tmp_path)


# --- overrides --------------------------------------------------------------------------------------------------


def test_an_override_beats_the_file_in_either_spelling(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text(
        "[train]\nbatch-size = 1\nepochs = 1\n[teachers]\nmodel_kwargs = { a = 1 }\n"
    )
    for key in ("train.batch-size", "train.batch_size"):
        settings = load_settings(tmp_path, {key: 2, "teachers.model-kwargs.b": 3, "method.new": 4})
        assert (settings.train.batch_size, settings.train.epochs) == (2, 1)
        assert settings.teachers.model_kwargs == {"a": 1, "b": 3}
        assert settings.method == {"new": 4}


def test_a_relative_path_in_an_override_starts_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text('data.ood.a = "a.npz"')
    settings = load_settings(tmp_path, {"data.ood.b": "b.npz", "output.cache": "elsewhere"})
    assert settings.data.ood == {"a": str(tmp_path / "a.npz"), "b": str(tmp_path / "b.npz")}
    assert settings.output.cache == str(tmp_path / "elsewhere")


def test_the_file_is_not_blamed_for_an_override(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text("views.count = 0")
    for key in ("train.batch-size", "train.batch_size"):
        with pytest.raises(EdistillError, match=rf"^{key} is 0: "):
            load_settings(tmp_path, {"views.count": 1, key: 0})
    with pytest.raises(EdistillError, match=r"^student\.heads\.1 is 0: "):
        load_settings(tmp_path, {"views.count": 1, "student.heads": [1, 0]})
    with pytest.raises(EdistillError, match=r"edistill\.toml: views\.count is 0: "):
        load_settings(tmp_path, {"train.epochs": 3})


def test_an_override_inside_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text('data.train = "x.npz"')
    with pytest.raises(EdistillError, match=r"--set data\.train\.rows: train is 'x\.npz', not a table\. Set train"):
        load_settings(tmp_path, {"data.train.rows": "r.npy"})


def test_an_assignment_is_toml_or_a_bare_word() -> None:
    for text, key, value in [
        ("train.epochs=3", "train.epochs", 3),
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("train.amp=true", "train.amp", True),
        ("student.heads=[100, 100]", "student.heads", [100, 100]),
        ("teachers.model-kwargs={ a = 1 }", "teachers.model-kwargs", {"a": 1}),
        ('output.name="3"', "output.name", "3"),
        ("train.method = hydra", "train.method", "hydra"),
        ("data.train=../a b/x=y.npz", "data.train", "../a b/x=y.npz"),
        ("student.model=model.py:make", "student.model", "model.py:make"),
        ("output.name=", "output.name", None),
    ]:
        assert parse_assignment(text) == (key, value)


def test_nothing_takes_a_key_out(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text('[student]\ninit = ["a", "b"]\n[train]\nwarmup_epochs = 3\n')
    found = load_settings(tmp_path, {"student.init": None, "train.warmup-epochs": None, "train.lr": None})
    assert (found.student.init, found.train.warmup_epochs, found.train.lr) == (None, 0, None)
    for key, told in (("student.inti", "student.init"), ("trian.lr", "train"), ("qqqq", "Valid keys")):
        with pytest.raises(EdistillError, match=f"unknown key {key}.*{told}"):
            load_settings(tmp_path, {key: None})
    assert load_settings(tmp_path, {"method.anything": None, "data.ood.far": None}).method == {}


def test_an_assignment_without_key_or_value_is_refused() -> None:
    for text in ["train.epochs", "=3", " = 3", ""]:
        with pytest.raises(EdistillError, match=r"write KEY=VALUE, for instance --set train\.epochs=3"):
            parse_assignment(text)


@given(st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False), st.lists(st.integers(), max_size=3)))
def test_any_number_or_list_survives_an_assignment(value: Any) -> None:
    written = str(value).lower() if isinstance(value, bool) else repr(value)
    assert parse_assignment(f"method.x={written}") == ("method.x", value)


@given(
    st.sampled_from(["train", "views", "method"]),
    st.floats(1e-9, 1e6),
    st.lists(st.integers(1, 9), max_size=3),
    st.text("abc äß'\"\\", min_size=1, max_size=8),
)
def test_settings_survive_toml(name: str, lr: float, heads: list[int], text: str) -> None:
    values = {"train": {"lr": lr, "method": name}, "student": {"heads": heads, "kwargs": {text: [text, {"a": lr}]}}}
    settings: Settings = settings_from(values, Path("/a/b"))
    assert settings_from(tomllib.loads(settings_toml(settings, Path("/c"))), Path("/c")) == settings
