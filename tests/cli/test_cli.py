"""The command line when all is well: help, the four commands bare, JSON, running again, and the flags."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from evaluate_helpers import kept_document
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from ensemble_distill import __version__
from ensemble_distill.cli.app import SUMMARIES, app, load
from ensemble_distill.cli.train import FLAGS
from ensemble_distill.settings import Settings, TrainSettings, load_settings, settings_from
from ensemble_distill.settings.messages import unknown

# names that users and scripts rely on
COMMANDS = {"quickstart", "cache-logits", "train", "evaluate", "export", "predict", "inspect", "verify", "methods"}
COMMANDS |= {"settings", "calibrate", "compare", "init", "doctor"}
ROAD = ("cache-logits", "train --method hydra", "evaluate", "export --onnx")
MODELS = ["ensemble", "member", "student", "best-2", "best-3"]
MODEL = ["accuracy", "nll", "brier", "ece", "total_uncertainty", "data_uncertainty", "model_uncertainty"]
FIDELITY = {
    *("member_kl", "mean_kl", "agreement", "gap_closed", "diversity_explained", "deviation_correlation"),
    *("model_uncertainty_l1", "model_uncertainty_ratio", "model_uncertainty_spearman"),
}


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def quicken(folder: Path) -> Path:
    """Make the folder's own settings the quick ones that its cache and run were made with."""
    text = (folder / "edistill.toml").read_text()
    for key, value in {"count": "2", "epochs": '8\ndevice = "cpu"'}.items():
        text, found = re.subn(rf"(?m)^{key} = \d+", f"{key} = {value}", text)
        assert found == 1
    (folder / "edistill.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def road(digits_session: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    """The mission's four commands, bare in a prepared folder, and what each of them said. Do not write to it."""
    folder = tmp_path_factory.mktemp("road") / "digits"
    shutil.copytree(digits_session, folder, ignore=shutil.ignore_patterns("cache", "runs"))
    quicken(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, {line: edistill(line) for line in ROAD}


@pytest.fixture
def quick(digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder to work in, its settings quick."""
    monkeypatch.chdir(digits)
    return quicken(digits)


def document(result: Result) -> Any:
    """What stdout holds, which is one JSON document without NaN."""
    assert result.exit_code == 0, result.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(result.stdout, parse_constant=refuse)


# --- help -------------------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_were_promised() -> None:
    assert set(SUMMARIES) == COMMANDS
    result = edistill("--help")
    assert result.exit_code == 0
    assert re.findall(r"^│ ([a-z-]+) {2,}\S", result.stdout.partition("Commands")[2], re.M) == list(SUMMARIES)


def test_a_command_says_what_it_does_and_gives_an_example() -> None:
    for name in sorted(COMMANDS):
        command = load(name)
        first, *rest = command.help.splitlines()
        assert first == SUMMARIES[name]
        examples = [line.removeprefix("Example: ") for line in rest if line.startswith("Example: ")]
        assert examples
        shown = edistill(f"{name} -h")
        assert shown.exit_code == 0
        for example in examples:
            program, named, *arguments = shlex.split(example)
            assert (program, named) == ("edistill", name)
            assert command.make_context(name, arguments), "the example parses"
            assert re.sub(r"\s+", " ", example) in re.sub(r"\s+", " ", shown.stdout)


def test_the_version() -> None:
    result = edistill("--version")
    assert (result.exit_code, result.stdout) == (0, f"edistill {__version__}\n")


# --- the road ---------------------------------------------------------------------------------------------------


def test_the_four_commands_run_bare(road: tuple[Path, dict[str, Result]]) -> None:
    folder, said = road
    assert {line: result.exit_code for line, result in said.items()} == dict.fromkeys(ROAD, 0)
    run = folder / "runs" / "hydra-s0"
    for name in ("student.safetensors", "config.json", "args.toml", "summary.csv", "export/model.onnx"):
        assert (run / name).is_file(), name
    kept = {path.name for path in (run / "evaluations").iterdir() if path.name[0] != "."}
    assert kept == {"test.json", "test.npz", "ood"}
    assert (folder / "cache" / "args.toml").is_file()


def test_results_go_to_stdout_and_progress_to_stderr(road: tuple[Path, dict[str, Result]]) -> None:
    _, said = road
    for line, result, progress in (
        ("cache-logits", "8 members, 10 classes", "caching train: 1,000 rows"),
        ("train --method hydra", "8 heads", "steps"),
        ("evaluate", "diversity explained", "evaluating test: 400 rows"),
        ("export --onnx", "runs/hydra-s0/export/model.onnx", ""),
    ):
        assert result in said[line].stdout
        assert progress in said[line].stderr
        assert not progress or progress not in said[line].stdout
        assert "\x1b" not in said[line].output, "no colors where nobody looks"


def test_the_table_of_evaluate_shows_every_figure(road: tuple[Path, dict[str, Result]]) -> None:
    _, said = road
    shown = said["evaluate"].stdout.replace(" ", "_")
    for name in (*MODEL, *FIDELITY, "quarter-turned", "parameters", "latency", "collapsed", "offsets", "halves"):
        assert name in shown, name


def test_a_second_time_all_is_up_to_date(road: tuple[Path, dict[str, Result]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said = road
    monkeypatch.chdir(folder)
    kept = [folder / "cache/manifest.json", folder / "runs/hydra-s0/student.safetensors"]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in kept]
    for line in ROAD[:2]:
        again = edistill(line)
        assert again.exit_code == 0
        assert re.search(r"(cache|hydra-s0) is up to date\.", again.stderr)
        assert again.stdout.splitlines()[0] == said[line].stdout.splitlines()[0]
        assert line == ROAD[0] or re.search(r"│ +– │", again.stdout), "nothing was trained, which took no time"
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in kept] == before


# --- JSON -------------------------------------------------------------------------------------------------------


def test_evaluate_prints_the_promised_document(quick: Path) -> None:
    found = document(edistill("evaluate --json"))
    promised = ["schema", "task", "run", "split", "rows", "models", "fidelity", "ood", "cost"]
    more = [
        "subensembles",
        "subensemble_fidelity",
        "fidelity_controls",
        "chain_fidelity",
        "calibrated",
        "shifts",
        "shift_levels",
        "ladder",
        "worth",
        "instead",
        "still_falling",
        "limit",
        "answering",
        "selective",
    ]
    assert list(found) == [*promised, *more]
    assert {key: found[key] for key in list(found)[:5]} == {
        "schema": 1,
        "task": "classification",
        "run": "hydra-s0",
        "split": "test",
        "rows": 400,
    }
    assert list(found["models"]) == MODELS
    for model, figures in found["models"].items():
        assert list(figures) == MODEL
        assert (figures["model_uncertainty"] is None) == (model == "member")
    assert set(found["fidelity"]) >= FIDELITY
    assert list(found["fidelity_controls"]) == ["collapsed", "offsets", "total_uncertainty", "halves"]
    assert all(list(figures) == list(found["fidelity"]) for figures in found["fidelity_controls"].values())
    assert list(found["ood"]) == ["quarter-turned"]
    for model, figures in found["ood"]["quarter-turned"].items():
        assert list(figures) == ["total_uncertainty", "model_uncertainty"]
        assert (figures["model_uncertainty"] is None) == (model == "member")
    assert list(found["cost"]) == MODELS
    assert all(list(figures) == ["parameters", "macs", "latency_ms"] for figures in found["cost"].values())
    assert kept_document(quick / "runs/hydra-s0/evaluations/test.json") == found


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("cache-logits", {"folder", "members", "classes", "splits", "added", "bytes", "decoded", "seconds"}),
        ("train", {"folder", "method", "heads", "parameters", "fresh", "resumed_at", "seconds"}),
        ("export --safetensors", {"files"}),
        ("inspect cache", {"kind", "members", "splits", "classes"}),
        ("verify", {"folder", "records", "problems", "unfinished", "decoded"}),
    ],
)
def test_json_is_one_document(quick: Path, line: str, keys: set[str]) -> None:
    assert document(edistill(f"{line} --json")).keys() >= keys


def test_methods_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = document(edistill("methods --json"))
    assert "hydra" in [method["name"] for method in listed]
    table = edistill("methods").stdout
    for method in listed:
        assert list(method) == ["name", "what", "paper", "tasks", "needs", "outputs", "options"]
        assert all(str(value) in table for value in method.values()), "not cut where there is no terminal"


# --- settings ---------------------------------------------------------------------------------------------------


def test_every_key_is_listed_as_a_file_that_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = edistill("settings").stdout
    (tmp_path / "edistill.toml").write_text(text)
    assert load_settings() == settings_from({}, Path())
    listed = [key["key"] for key in document(edistill("settings --json"))]
    assert len(listed) == len(set(listed)) > 60
    assert all(unknown(key, Settings) is None for key in listed)
    shown = re.findall(r"^(?:# )?([A-Za-z.-]+) =", text, re.M)
    assert shown == [key.partition(".")[2] or key for key in listed if key != "method"]


def test_every_key_says_what_it_is() -> None:
    for section in [Settings, *(field.annotation for field in Settings.model_fields.values())]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            for name, field in section.model_fields.items():
                assert field.description or issubclass(field.annotation, BaseModel), name  # type: ignore[arg-type]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of each `edistill train`, which trains nothing."""
    seen: list[Settings] = []

    def train(settings: Settings, **_: Any) -> None:
        seen.append(settings)
        raise typer.Exit(0)

    monkeypatch.setattr("ensemble_distill.workflows.train.train", train)
    return seen


def test_flags_are_timms_and_reach_the_settings(quick: Path, asked: list[Settings]) -> None:
    given = "-b 7 -j 3 --opt sgd --lr 0.5 --sched plateau --epochs 11 --warmup-epochs 2 --weight-decay 0.25 --amp"
    given += " --momentum 0.5 --decay-rate 0.25 --patience-epochs 0"
    assert (
        edistill(f"train {given} --amp-dtype float16 --model-ema --device cuda:1 --seed 5 --name mine").exit_code == 0
    )
    assert (
        edistill("train --batch-size 9 --workers 2 --no-amp --no-model-ema --clip-grad 2 --channels-last").exit_code
        == 0
    )
    assert edistill("train").exit_code == 0
    first, second, bare = asked
    assert first.output.name == "mine"
    for settings, wanted in (
        (first, {"batch_size": 7, "workers": 3, "opt": "sgd", "lr": 0.5, "sched": "plateau", "epochs": 11}),
        (first, {"momentum": 0.5, "decay_rate": 0.25, "patience_epochs": 0}),
        (first, {"warmup_epochs": 2, "weight_decay": 0.25, "amp": True, "amp_dtype": "float16"}),
        (first, {"model_ema": True, "device": "cuda:1", "seed": 5}),
        (
            second,
            {"batch_size": 9, "workers": 2, "amp": False, "model_ema": False, "clip_grad": 2, "channels_last": True},
        ),
    ):
        assert {name: getattr(settings.train, name) for name in wanted} == wanted
    assert bare == load_settings(quick), "what is not given is the file's"


def test_every_flag_of_train_is_a_setting_with_its_help() -> None:
    shown = re.sub(r"[│\s]+", " ", edistill("train --help").stdout)
    fields = {name.replace("_", "-"): field for name, field in TrainSettings.model_fields.items()}
    for name in FLAGS:
        assert f"--{name} " in shown
        assert str(fields[name].description).split()[-1] in shown
    assert set(fields) - set(FLAGS) == {"checkpoint-minutes", "freeze-bn", "peer-timeout", "plateau-threshold"}, (
        "reached by --set"
    )


def test_set_reaches_any_key(quick: Path, asked: list[Settings]) -> None:
    line = "--set method.temperature=2 --set student.heads=[5] --set data.ood.x=data/test.npz --set train.epochs=3"
    assert edistill(f"train {line}").exit_code == 0
    (settings,) = asked
    assert (settings.method["temperature"], settings.student.heads, settings.train.epochs) == (2, (5,), 3)
    assert settings.data.ood["x"] == str(quick / "data/test.npz")


def test_another_settings_file(quick: Path, asked: list[Settings], tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("train.epochs = 77")
    assert edistill(f"train -c {tmp_path / 'other.toml'} --lr 1").exit_code == 0
    assert edistill(f"train --config {quick}").exit_code == 0, "a folder stands for the edistill.toml in it"
    assert [settings.train.epochs for settings in asked] == [77, 8]
    assert asked[0].output.runs == str(tmp_path / "runs")
