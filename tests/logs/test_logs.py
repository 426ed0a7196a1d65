"""What `--log` writes: each figure once, however often a training was ended. jsonl and tensorboard for real; wandb and
mlflow against modules that record what they are told, as those services keep it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny import StopsAt, contents, make_folder, refused, refused_and_kept, settings, with_cache
from typer.testing import CliRunner

from ensemble_distill.chains import generations  # noqa: F401, before `train` is replaced for a test
from ensemble_distill.cli.app import app
from ensemble_distill.logs import LogPlace, Logs, jsonl, log_names, open_logs
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.train import train

Figures = dict[int, dict[str, float]]
HARD = {"train.epochs": 4, "train.batch-size": 8, "train.checkpoint-minutes": 1e6}  # five steps an epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_cache(make_folder(tmp_path_factory.mktemp("logs") / "tiny", rows={"train": 40, "validation": 12}))


def of_jsonl(run: Path) -> Figures:
    lines = [json.loads(line) for line in (run / "logs/train.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), "each step once, in order"
    return {line.pop("step"): line for line in lines}


def of_tensorboard(run: Path) -> Figures:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs/tensorboard"))
    events.Reload()
    found: Figures = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in found.setdefault(event.step, {}), "each step once"
            found[event.step][name] = event.value
    return dict(sorted(found.items()))


READ = {"jsonl": of_jsonl, "tensorboard": of_tensorboard}


@pytest.fixture(params=READ)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "tensorboard":
        pytest.importorskip("tensorboard")
    return str(request.param)


def without_time(figures: Figures) -> Figures:
    return {step: {k: v for k, v in of.items() if k != "seconds"} for step, of in figures.items()}


def test_there_are_four_and_none_is_on() -> None:
    assert log_names() == ("jsonl", "mlflow", "tensorboard", "wandb")


def test_nothing_is_logged_unless_asked_for(folder: Path) -> None:
    train(settings(folder, {**HARD, "output.name": "plain"}))
    assert not (folder / "runs/plain/logs").exists()


@pytest.mark.thorough
def test_a_log_has_what_the_summary_has_and_the_loss_between(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_distill.training.loop.READ_EVERY", 2)
    train(settings(folder, {**HARD, "output.name": f"whole-{kind}", "output.log": kind}))
    run = folder / f"runs/whole-{kind}"
    found = READ[kind](run)
    header, *rows = [line.split(",") for line in (run / "summary.csv").read_text().splitlines()]
    for row in rows:
        summed = dict(zip(header, row, strict=True))
        logged = found[5 * int(summed["epoch"])]
        for name in ("train_loss", "validation_loss", "validation_nll", "lr", "epoch"):
            assert logged[name] == pytest.approx(float(summed[name]), rel=1e-5)
    assert {2, 4} <= found.keys(), "a read of every second step"
    of_first = [found[step]["loss"] for step in (2, 4, 5)]  # means of two steps, two, and one
    assert (2 * of_first[0] + 2 * of_first[1] + of_first[2]) / 5 == pytest.approx(found[5]["train_loss"], rel=1e-5)


@pytest.mark.thorough
def test_a_resumed_training_continues_its_log(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in the middle of epochs, after steps that were logged and not saved."""
    monkeypatch.setattr("ensemble_distill.training.loop.READ_EVERY", 1)
    mine = {**HARD, "output.log": [kind]}
    train(settings(folder, {**mine, "output.name": f"in-one-{kind}"}))
    parts = settings(folder, {**mine, "output.name": f"in-parts-{kind}"})
    for steps in (3, 8, 4):
        with pytest.raises(KeyboardInterrupt):
            train(parts, progress=StopsAt(steps))
    train(parts)
    whole, found = (READ[kind](folder / f"runs/{name}-{kind}") for name in ("in-one", "in-parts"))
    assert list(whole) == list(range(1, 21))
    assert without_time(found) == without_time(whole)


def test_an_epoch_took_what_it_took_before_an_interruption_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class ASecondAStep(StopsAt):
        def advance(self, count: int = 1, facts: object = None) -> None:
            now[0] += self.unit == "steps"
            super().advance(count, facts)

    monkeypatch.setattr("ensemble_distill.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))
    mine = settings(folder, {**HARD, "output.name": "timed", "train.checkpoint-minutes": 1e-9})
    with pytest.raises(KeyboardInterrupt):
        train(mine, progress=ASecondAStep(9))
    assert train(mine, progress=ASecondAStep(1000)).resumed_at == 8
    header, *rows = [line.split(",") for line in (folder / "runs/timed/summary.csv").read_text().splitlines()]
    assert [dict(zip(header, row, strict=True))["seconds"] for row in rows] == ["5"] * 4


def test_a_torn_line_goes_and_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    log = jsonl.LOG(LogPlace(tmp_path, "p", "n"))
    log.begin(0)
    for step in (1, 2, 3):
        log.add(step, {"loss": 1 / step if step < 3 else float("inf")})
    path = tmp_path / jsonl.NAME
    assert [json.loads(line) for line in path.read_text().splitlines()][2] == {"step": 3, "loss": None}
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    jsonl.LOG(LogPlace(tmp_path, "p", "n")).begin(2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.thorough
def test_a_run_that_is_replaced_begins_its_log_anew(folder: Path) -> None:
    mine = {**HARD, "output.name": "again", "output.log": "jsonl"}
    train(settings(folder, mine))
    run = folder / "runs/again"
    first = of_jsonl(run)
    with pytest.raises(KeyboardInterrupt):
        train(settings(folder, mine), overwrite=True, progress=StopsAt(3))
    assert of_jsonl(run) == first, "the old run stands until the new one has a checkpoint"
    train(settings(folder, {**mine, "train.seed": 1}), overwrite=True)
    assert list(of_jsonl(run)) == list(first)
    assert of_jsonl(run)[5]["train_loss"] != first[5]["train_loss"]


def test_an_unknown_log_is_refused_before_anything(folder: Path) -> None:
    with refused_and_kept(folder, "output.log", "'tensorbord'", "Did you mean tensorboard?"):
        train(settings(folder, {**HARD, "output.name": "unknown", "output.log": ["jsonl", "tensorbord"]}))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_told_with_its_extra(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with refused_and_kept(folder, f"--log {name}", f"edistill[{name}]"):
        train(settings(folder, {**HARD, "output.name": "lacking", "output.log": name}))


def test_flags_name_several(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    seen: list[Any] = []
    monkeypatch.setattr(
        "ensemble_distill.workflows.train.train", lambda settings, **_: seen.append(settings.output.log)
    )
    for line in ("train --log jsonl --log wandb", "train --set output.log=jsonl", "train"):
        CliRunner().invoke(app, line.split())
    assert seen == [("jsonl", "wandb"), ("jsonl",), ()]


# --- what fails -------------------------------------------------------------------------------------------------


class Failing:
    """A log whose server stops answering."""

    def __init__(self, at: str) -> None:
        self.at, self.heard = at, []  # type: ignore[var-annotated]

    def _hear(self, name: str, *given: Any) -> None:
        self.heard.append((name, *given))
        if name == self.at:
            raise ConnectionError("no answer")

    def begin(self, step: int) -> None:
        self._hear("begin", step)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self._hear("add", step, dict(figures))

    def flush(self) -> None:
        self._hear("flush")

    def close(self, finished: bool) -> None:
        self._hear("close", finished)


def test_a_log_that_fails_later_is_told_of_once_and_left_out() -> None:
    progress, fails, other = Silent(), Failing("add"), Failing("never")
    logs = Logs({"mine": fails, "other": other}, progress)
    logs.begin(0)
    for step in (1, 2, 3):
        logs.add(step, {"loss": step})
    logs.close(True)
    assert [name for name, *_ in fails.heard] == ["begin", "add"]
    assert other.heard[1:] == [*(("add", step, {"loss": step}) for step in (1, 2, 3)), ("close", True)]
    (told,) = progress.warnings
    assert "--log mine" in told
    assert "ConnectionError: no answer" in told


def test_a_log_that_cannot_begin_is_refused() -> None:
    logs = Logs({"mine": Failing("begin")}, Silent())
    with refused("--log mine", "no answer", "--set output.log="):
        logs.begin(0)
    logs.close(False)


def test_a_step_is_handed_on_in_one_piece_and_what_came_before_the_beginning_too() -> None:
    log = Failing("never")
    logs = Logs({"mine": log})
    logs.add(1, {"loss": 1})
    logs.add(2, {"loss": 2})
    logs.add(2, {"epoch": 1})
    assert log.heard == []
    logs.begin(0)
    logs.flush()
    assert log.heard == [("begin", 0), ("add", 1, {"loss": 1}), ("add", 2, {"loss": 2, "epoch": 1}), ("flush",)]


def test_of_several_processes_the_first_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    logs = open_logs(["jsonl"], LogPlace(tmp_path / "logs", "p", "n"), Silent())
    logs.begin(0)
    logs.add(1, {"loss": 1})
    logs.close(True)
    assert contents(tmp_path) == {}


# --- stand-ins --------------------------------------------------------------------------------------------------


class Wandb(ModuleType):
    """Keeps runs by their id, as the service does: what is logged of a step stays, and steps rise."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.kept: dict[str, Figures] = {}
        self.begun: list[dict[str, Any]] = []

    def init(self, **about: Any) -> Any:
        assert about["resume"] == "allow"
        self.begun.append(about)
        history = self.kept.setdefault(about["id"], {})

        def log(figures: dict[str, float], *, step: int) -> None:
            assert step > max(history, default=-1), "the service drops such a step"
            history[step] = figures

        return SimpleNamespace(step=max(history, default=-1) + 1, log=log, finish=lambda exit_code: None)


class Mlflow(ModuleType):
    """Keeps every metric that it is given, twice where it is given twice."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.metrics: dict[str, list[Any]] = {}
        self.params: dict[str, str] = {}
        self.statuses: list[str] = []
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
            Param=lambda key, value: (key, value),
        )

    def MlflowClient(self) -> Any:  # noqa: N802
        return self

    def set_experiment(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name)

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        run = f"{experiment_id}-{run_name}-{len(self.metrics)}"
        self.metrics[run] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def update_run(self, run: str, status: str) -> None:
        assert run in self.metrics
        self.statuses.append(status)

    def get_metric_history(self, run: str, key: str) -> list[Any]:
        return [metric for metric in self.metrics[run] if metric.key == key]

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        self.metrics[run] += metrics
        self.params |= dict(params)

    def set_terminated(self, run: str, status: str) -> None:
        self.statuses.append(status)


def trained_in_parts(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Figures:
    """A training by `--log name` that is ended three times; the figures of the same in one go, by jsonl."""
    monkeypatch.setattr("ensemble_distill.training.loop.READ_EVERY", 1)
    train(settings(folder, {**HARD, "output.name": f"one-{name}", "output.log": "jsonl"}))
    parts = settings(folder, {**HARD, "output.name": f"parts-{name}", "output.log": name})
    for steps in (3, 8, 4):
        with pytest.raises(KeyboardInterrupt):
            train(parts, progress=StopsAt(steps))
    train(parts)
    return without_time(of_jsonl(folder / f"runs/one-{name}"))


@pytest.mark.thorough
def test_wandb_is_told_each_step_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", module := Wandb())
    wanted = trained_in_parts(folder, "wandb", monkeypatch)
    (history,) = module.kept.values()
    assert without_time(history) == wanted
    assert {(one["project"], one["name"]) for one in module.begun} == {("tiny", "parts-wandb")}
    assert all(one["config"]["train.epochs"] == 4 for one in module.begun)


@pytest.mark.thorough
def test_mlflow_is_told_each_step_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", module := Mlflow())
    wanted = trained_in_parts(folder, "mlflow", monkeypatch)
    (metrics,) = module.metrics.values()
    told = [(metric.step, metric.key) for metric in metrics]
    assert len(told) == len(set(told))
    figures: Figures = {}
    for metric in metrics:
        figures.setdefault(metric.step, {})[metric.key] = metric.value
    assert without_time(figures) == wanted
    assert module.params["train.epochs"] == "4"
    assert module.statuses == ["KILLED", *(["RUNNING", "KILLED"] * 2), "RUNNING", "FINISHED"]
