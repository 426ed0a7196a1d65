"""`evaluate` on a chain: its generations and their averages against NumPy's, its teacher, and what finds it."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_regression
import torch
from evaluate_helpers import CACHED, Floats, assert_figures, ensemble_of, figures, kept_document, pixels_of, student_of
from numpy.testing import assert_allclose
from scipy.special import log_softmax
from scipy.stats import entropy, norm
from sklearn.metrics import roc_auc_score
from tiny import make_folder, refused, refused_and_kept, settings
from typer.testing import CliRunner

from ensemble_distill import load_student
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.chains.generations import train_chain
from ensemble_distill.cli.app import app
from ensemble_distill.evaluation.remarks import remarks
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runs.finding import find, find_run
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}  # float32 networks
GENERATIONS = ["generation-1", "generation-2", "generation-3"]
ROWS = {"train": 40, "validation": 24, "test": 30, "ood/noise": 21}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members, their cache, a run runs/plain, and then two chains: runs/of-one from a member, runs/all from all. Do not
    write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        folder = make_folder(tmp_path_factory.mktemp("chains") / "tiny", rows=ROWS)
        cache_logits(settings(folder))
        train(settings(folder, {"train.method": "kd", "output.name": "plain"}))
        train_chain(asked(folder, "of-one", 2, {"train.teacher": "member-1"}))
        train_chain(asked(folder, "all", 3))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def asked(folder: Path, name: str, generations: int, more: dict[str, Any] | None = None) -> Settings:
    chain = {"train.method": "ban", "train.generations": generations, "output.name": name}
    return load_settings(folder / "edistill.toml", {**chain, **(more or {})})


def rows_of_test(folder: Path) -> tuple[torch.Tensor, Any]:
    file = folder / "data/test.npz"
    return pixels_of(file), np.load(file)["y"]


def generations_of(chain: Path, x: torch.Tensor, count: int) -> Floats:
    """Log-probabilities (N, G, K) of the first generations."""
    return np.concatenate([student_of(chain / name, x) for name in GENERATIONS[:count]], axis=1)


# --- figures ----------------------------------------------------------------------------------------------------


def test_generations_and_averages_are_numpys(folder: Path) -> None:
    document = evaluate(settings(folder), "all").to_json()
    x, y = rows_of_test(folder)
    chain, models = folder / "runs/all", document["models"]
    assert list(models) == [
        *("ensemble", "member", "student", "best-2", "best-3"),
        *(*GENERATIONS, "bane-2", "bane-3"),
    ]
    assert_figures(models["ensemble"], figures(ensemble_of(folder, x), y))
    every = generations_of(chain, x, 3)
    for index, name in enumerate(GENERATIONS):
        own = figures(every[:, [index]], y)
        assert own.pop("model_uncertainty") == pytest.approx(0, abs=1e-9)
        assert_figures(models[name], own, **EXACT)
        assert models[name]["model_uncertainty"] is None
    assert models["student"] == models["generation-3"]
    for size in (2, 3):
        wanted = figures(every[:, :size], y)
        assert wanted["model_uncertainty"] > 1e-4
        assert_figures(models[f"bane-{size}"], wanted, **EXACT)
    plain_mean = np.exp(every).mean(1)
    assert_allclose(models["bane-3"]["nll"], -np.log(plain_mean[np.arange(len(y)), y]).mean(), **EXACT)
    assert_allclose(models["bane-3"]["total_uncertainty"], entropy(plain_mean, axis=1).mean(), **EXACT)


def test_nearness_is_of_what_they_say_together(folder: Path) -> None:
    document = evaluate(settings(folder), "all").to_json()
    x, y = rows_of_test(folder)
    every, members = generations_of(folder / "runs/all", x, 3), ensemble_of(folder, x)
    p = np.exp(members).mean(1)
    near = document["chain_fidelity"]
    assert list(near) == [*GENERATIONS, "bane-2", "bane-3"]
    own = np.mean([figures(members[:, [m]], y)["nll"] for m in range(3)])
    for name, at in {
        **{name: [g] for g, name in enumerate(GENERATIONS)},
        "bane-2": [0, 1],
        "bane-3": [0, 1, 2],
    }.items():
        q = np.exp(every[:, at]).mean(1)
        wanted = {
            "mean_kl": entropy(p, q, axis=1).mean(),
            "agreement": (p.argmax(1) == q.argmax(1)).mean(),
            "gap_closed": (own - figures(every[:, at], y)["nll"]) / (own - figures(members, y)["nll"]),
        }
        assert_figures(near[name], wanted, rtol=1e-2, atol=1e-3)
        assert near[name]["member_kl"] is None, "no head of it imitates a member"
    assert document["fidelity"] == near["generation-3"]


def test_elsewhere_is_told_by_the_averages(folder: Path) -> None:
    document = evaluate(settings(folder), "all").to_json()
    chain = folder / "runs/all"
    rows = [pixels_of(folder / f"data/{split}.npz") for split in ("test", "ood/noise")]
    truth = np.repeat([0, 1], [ROWS["test"], ROWS["ood/noise"]])
    found = document["ood"]["noise"]
    for size in (2, 3):
        p = np.exp(np.concatenate([generations_of(chain, x, size) for x in rows]))
        total, data = entropy(p.mean(1), axis=1), entropy(p, axis=2).mean(1)
        assert_allclose(found[f"bane-{size}"]["total_uncertainty"], roc_auc_score(truth, total), atol=2e-3)
        assert_allclose(found[f"bane-{size}"]["model_uncertainty"], roc_auc_score(truth, total - data), atol=2e-3)
    alone = entropy(np.exp(np.concatenate([student_of(chain / "generation-2", x)[:, 0] for x in rows])), axis=1)
    assert_allclose(found["generation-2"]["total_uncertainty"], roc_auc_score(truth, alone), atol=2e-3)
    assert found["generation-2"]["model_uncertainty"] is None


def test_what_is_kept_is_of_the_chain(folder: Path) -> None:
    document = evaluate(settings(folder), "all").to_json()
    chain = folder / "runs/all"
    assert kept_document(chain / "evaluations/test.json") == document
    assert (document["run"], document["rows"], document["calibrated"]) == ("all", 30, False)
    assert not list(chain.glob("generation-*/evaluations"))
    x, y = rows_of_test(folder)
    every = generations_of(chain, x, 3)
    with np.load(chain / "evaluations/test.npz") as rows, np.load(chain / "evaluations/ood/noise.npz") as away:
        for name, at in {"generation-1": [0], "generation-3": [2], "bane-2": [0, 1]}.items():
            p = np.exp(every[:, at]).mean(1)
            assert_allclose(rows[f"{name}_nll"], -np.log(p[np.arange(30), y]), rtol=1e-4, atol=1e-6)
            assert (rows[f"{name}_prediction"] == p.argmax(1)).all()
            assert away[f"{name}_total_uncertainty"].shape == (21,)


def test_costs_add_up(folder: Path) -> None:
    cost = evaluate(settings(folder), "all").cost
    macs = 36 * 12 + 12 * 3
    for size, name in enumerate(["generation-1", "bane-2", "bane-3"], start=1):
        assert cost[name]["macs"] == size * macs
        assert cost[name]["parameters"] == size * (macs + 12 + 2 * 12 + 3)


def test_a_calibrated_generation_is_averaged_as_it_predicts(folder: Path) -> None:
    before = evaluate(settings(folder), "all").to_json()
    calibrate(settings(folder), "all/generation-1")
    chain, alone = evaluate(settings(folder), "all"), evaluate(settings(folder), "all/generation-1")
    command = f"edistill calibrate {folder / 'runs/all/generation-1'} --remove"
    for found in (chain, alone):
        assert any(told.endswith(f"is calibrated. To undo that, run {command}.") for told in remarks(found))
    after = chain.to_json()
    assert (before["calibrated"], after["calibrated"]) == (False, True)
    x, y = rows_of_test(folder)
    every = generations_of(folder / "runs/all", x, 3)
    temperature = json.loads((folder / "runs/all/generation-1/calibration.json").read_text())["temperature"]
    every[:, 0] = log_softmax(every[:, 0] / temperature, axis=-1)
    assert_figures(after["models"]["bane-3"], figures(every, y), **EXACT)
    assert after["models"]["bane-3"]["nll"] != before["models"]["bane-3"]["nll"]
    assert after["models"]["generation-2"] == before["models"]["generation-2"]
    calibrate(settings(folder), command.split()[2], remove=True)
    assert not evaluate(settings(folder), "all").calibrated


def test_shifts_of_all_models(folder: Path) -> None:
    document = evaluate(settings(folder), "of-one", shifts=True).to_json()
    for severities in document["shifts"].values():
        for models in severities.values():
            assert models["bane-2"]["nll"] > 0
            assert models["generation-1"]["model_uncertainty"] is None


# --- the teacher ------------------------------------------------------------------------------------------------


def edistill(folder: Path, line: str, messages: bool = False) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output
    return result.stderr if messages else result.stdout


def columns(folder: Path, line: str) -> list[list[str]]:
    """The headings of all markdown tables."""
    lines = edistill(folder, f"{line} --format markdown").splitlines()
    return [[cell.strip() for cell in one.strip("| ").split("|")] for one in lines if one.startswith("|  ")]


def test_a_single_teacher_is_called_so(folder: Path) -> None:
    x, y = rows_of_test(folder)
    models = evaluate(settings(folder), "of-one").models
    member = figures(ensemble_of(folder, x)[:, [1]], y)
    del member["model_uncertainty"]
    assert_figures(models["ensemble"], member)
    tables = columns(folder, "evaluate of-one")
    assert len(tables) == 2
    for names in tables:
        assert "teacher" in names
        assert not {"ensemble", "member"} & set(names)
    assert tables[1][-4:] == ["teacher", "generation-1", "generation-2", "bane-2"]
    (_, all_models) = columns(folder, "evaluate all")
    assert all_models[-8:] == ["ensemble", "member", "best-2", *GENERATIONS, "bane-2", "bane-3"]


def test_a_later_generation_has_the_one_before_as_its_teacher(folder: Path) -> None:
    document = evaluate(settings(folder), "all/generation-2").to_json()
    x, y = rows_of_test(folder)
    before, own = (figures(student_of(folder / f"runs/all/generation-{g}", x), y) for g in (1, 2))
    del before["model_uncertainty"], own["model_uncertainty"]
    # a teacher's logits pass through its record's float16, the student's own through nothing
    assert_figures(document["models"]["ensemble"], before, **CACHED)
    assert_figures(document["models"]["student"], own, **EXACT)
    on_cached = evaluate(settings(folder), "all/generation-2", split="validation").models["ensemble"]
    file = folder / "data/validation.npz"
    wanted = figures(student_of(folder / "runs/all/generation-1", pixels_of(file)), np.load(file)["y"])
    del wanted["model_uncertainty"]
    assert_figures(on_cached, wanted, **CACHED)
    first = evaluate(settings(folder), "all/generation-1").models["ensemble"]
    assert_figures(first, figures(ensemble_of(folder, x), y))


# --- which command finds it -------------------------------------------------------------------------------------


def test_the_latest_is_a_chain(folder: Path) -> None:
    found = json.loads(edistill(folder, "evaluate --json"))
    assert found["run"] == "all"
    rows = list(csv.DictReader(io.StringIO(edistill(folder, "evaluate --format csv"))))
    nll = {row["model"]: float(row["value"]) for row in rows if (row["section"], row["figure"]) == ("quality", "nll")}
    assert nll["bane-3"] == pytest.approx(found["models"]["bane-3"]["nll"])
    assert found["chain_fidelity"] is not None
    os.utime(folder / "runs/plain/student.safetensors")
    alone = json.loads(edistill(folder, "evaluate --json"))
    assert (alone["run"], alone["chain_fidelity"]) == ("plain", None)


def test_the_latest_run_is_the_last_generation(made: Path) -> None:
    assert find_run(made / "runs", None).folder == made / "runs/all/generation-3"
    found = find(made / "runs", None)
    assert isinstance(found, Chain)
    assert [run.folder.name for run in found.runs] == GENERATIONS


def test_an_unfinished_chain_has_its_finished_generations(folder: Path) -> None:
    (folder / "runs/all/generation-3/student.safetensors").unlink()
    assert list(evaluate(settings(folder), "all").chain_fidelity) == [*GENERATIONS[:2], "bane-2"]
    (folder / "runs/all/generation-2/student.safetensors").unlink()
    document = evaluate(settings(folder), "all").to_json()
    assert list(document["chain_fidelity"]) == ["generation-1"]
    assert document["models"]["student"] == document["models"]["generation-1"]
    (folder / "runs/all/generation-1/student.safetensors").unlink()
    with refused("runs/all holds no finished generation", "Run edistill train"):
        evaluate(settings(folder), "all")


def test_commands_that_take_one_run_take_the_last_generation(folder: Path) -> None:
    export(settings(folder), "all", safetensors=True)
    assert (folder / "runs/all/generation-3/export/model.safetensors").is_file()
    assert calibrate(settings(folder), "all").folder == folder / "runs/all/generation-3"


def test_runs_that_stand_side_by_side(made: Path) -> None:
    with refused_and_kept(made, "runs/all is a chain", "edistill evaluate all", "all/generation-1"):
        evaluate_together(settings(made), ["all", "plain"])
    with refused_and_kept(made, "There is no run other", "all, of-one, plain"):
        evaluate(settings(made), "other")
    with refused_and_kept(made, "cannot stand in one table", "the number of members is 3 for the one and 1"):
        evaluate_together(settings(made), ["plain", "all/generation-2"])


def test_a_first_generation_stands_beside_runs_of_its_ensemble(folder: Path) -> None:
    runs = evaluate_together(settings(folder), ["plain", "all/generation-1"]).to_json()["runs"]
    assert [run["run"] for run in runs] == ["plain", "generation-1"]
    assert runs[0]["models"]["ensemble"] == runs[1]["models"]["ensemble"]


def test_runs_that_are_called_like_generations_are_no_chain(folder: Path) -> None:
    shutil.rmtree(folder / "runs/all")
    run = train(settings(folder, {"train.method": "kd", "output.name": "generation-1"})).folder
    assert find(folder / "runs", None) == Run.open(run)


def test_a_chain_on_the_command_line(folder: Path) -> None:
    line = "train --method ban --generations 2 --teacher member-1 --name of-one"
    assert "runs/of-one is up to date." in edistill(folder, line, messages=True).replace("\n", "")
    found = json.loads(edistill(folder, "train --method ban --generations 2 --epochs 1 --seed 4 --json"))
    assert Path(found["folder"]).name == "ban-s4"
    assert found["fresh"]
    assert [Path(one["folder"]).name for one in found["generations"]] == GENERATIONS[:2]
    assert "ban-s4: 2 generations by ban" in edistill(folder, "train --method ban --generations 2 --epochs 1 --seed 4")


# --- the chain as an ensemble -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_chain_is_a_folder_of_teachers(folder: Path) -> None:
    evaluate(settings(folder), "all")  # what it keeps is no teacher
    bane = {
        "teachers": {"path": "runs/all"},
        "output.cache": "bane",
        "output.name": "from-the-chain",
        "train.method": "hydra",
    }
    assert cache_logits(settings(folder, bane)).members == tuple(GENERATIONS)
    assert Manifest.load(folder / "bane").names == tuple(GENERATIONS)
    assert train(settings(folder, bane)).heads == 3
    ensemble = evaluate(settings(folder, bane), "from-the-chain").models["ensemble"]
    of_chain = evaluate(settings(folder), "all").models["bane-3"]
    assert_figures(ensemble, {name: value for name, value in of_chain.items() if name != "ece"})


# --- numbers ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def moments(run: Path, x: Any) -> tuple[Floats, Floats]:
    """Means and variances (N, 1) of a run, in the target's unit."""
    student = load_student(run, trust=True)
    predictive: Any = student.predictive(student(torch.from_numpy(x)))
    return predictive.mean.double().numpy(), predictive.log_variance.double().exp().numpy()


def of_numbers(mean: Floats, variance: Floats, y: Floats) -> dict[str, float]:
    """The figures of a mixture, from means and variances (N, M)."""
    return {
        "rmse": float(np.sqrt(((y - mean.mean(1)) ** 2).mean())),
        "nll": float(-np.log(norm(mean, np.sqrt(variance)).pdf(y[:, None]).mean(1)).mean()),
        "total_uncertainty": float((variance.mean(1) + mean.var(1)).mean()),
        "data_uncertainty": float(variance.mean()),
        "model_uncertainty": float(mean.var(1).mean()),
    }


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["ban", "ban+l"])
def test_a_chain_of_numbers(tmp_path: Path, objective: str) -> None:
    """From members that return standardized ones."""
    units = (tiny_regression.LEVEL, tiny_regression.SPREAD)
    folder = tiny_regression.make_folder(tmp_path / "tiny", units=units)
    more = {"teachers.standardized": {"mean": units[0], "std": units[1]}, "method.objective": objective}
    cache_logits(asked(folder, "numbers", 3, more))
    chain = train_chain(asked(folder, "numbers", 3, more)).folder
    document = evaluate(asked(folder, "numbers", 3, more), "numbers").to_json()
    x, targets = tiny_regression.load_data(folder, "test")
    y = targets.astype(np.float64)
    said = [moments(chain / name, x) for name in GENERATIONS]
    for size in (2, 3):
        mean, variance = (np.concatenate(part, axis=1) for part in zip(*said[:size], strict=True))
        assert_figures(document["models"][f"bane-{size}"], of_numbers(mean, variance, y), rtol=1e-4)
    alone = of_numbers(*said[1], y)
    del alone["model_uncertainty"]
    assert_figures(document["models"]["generation-2"], alone, rtol=1e-4)
    assert_figures(document["models"]["ensemble"], of_numbers(*tiny_regression.ensemble(x), y), rtol=1e-4)
    assert document["models"]["generation-3"]["rmse"] < 3 * tiny_regression.SPREAD, "in the target's unit"
