"""Runs held against each other: intervals by theory, figures as `evaluate` has them, seeds together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import one_head
import pytest
import tiny
from numpy.typing import NDArray
from scipy.stats import norm
from tiny import refused, settings

from ensemble_distill.cli.compare import _difference, show
from ensemble_distill.cli.flags import Style
from ensemble_distill.evaluation.compared import Compared
from ensemble_distill.evaluation.paired import Difference, Figured, _drawn, differences, draws_for
from ensemble_distill.facts import Calibration
from ensemble_distill.runs.calibration import write_calibration
from ensemble_distill.runs.run import Run
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.compare import compare
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

RUNS = ("hydra-s0", "hydra-s1", "single")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of four members, a hydra of two seeds, and a student of one head. Do not write to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("compare") / "tiny", 4, {**tiny.ROWS, "test": 24})
    cache_logits(settings(folder))
    for seed in (0, 1):
        train(settings(folder, {"output.name": f"hydra-s{seed}", "train.seed": seed}))
    train(settings(folder, {"output.name": "single", "train.method": one_head.SPEC}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def mean_of(values: NDArray[np.float64]) -> Figured:
    def figured(some: NDArray[np.int64]) -> Figures:
        return {"mean": float(values[some].mean()), "square": float((values[some] ** 2).mean()), "none": None}

    return figured


def width(of: Difference) -> float:
    assert of.low is not None
    assert of.high is not None
    return of.high - of.low


# --- intervals --------------------------------------------------------------------------------------------------


def test_an_interval_is_that_of_theory_where_there_is_one() -> None:
    random = np.random.default_rng(0)
    common = random.normal(0, 5, 600)  # what both share cancels out
    one, other = common + random.normal(0, 1, 600), common + random.normal(0.3, 1, 600)
    found = differences([[mean_of(one)], [mean_of(other)]], np.arange(600), 1000)[0]
    apart = other - one
    error = apart.std(ddof=1) / np.sqrt(600)
    assert found["mean"].value == pytest.approx(apart.mean())
    low, high = norm.interval(0.95, apart.mean(), error)
    assert (found["mean"].low, found["mean"].high) == pytest.approx((low, high), abs=0.15 * error)
    assert found["mean"].clear
    assert "none" not in found, "a figure that does not exist has no difference"


def test_the_same_model_is_not_apart_from_itself() -> None:
    values = np.random.default_rng(1).normal(size=50)
    found = differences([[mean_of(values)], [mean_of(values.copy())]], np.arange(50), 200)[0]
    assert [(of.value, of.low, of.high, of.clear) for of in found.values()] == [(0, 0, 0, False)] * 2


def test_positions_of_a_row_are_drawn_together() -> None:
    """With every position of a row alike, 40 rows of 25 positions know as much as 40 rows."""
    random = np.random.default_rng(2)
    of_rows = random.normal(0.5, 1, 40)
    rows = np.repeat(np.arange(40), random.integers(20, 31, 40))
    zeros = mean_of(np.zeros(len(rows)))
    together = differences([[zeros], [mean_of(of_rows[rows])]], rows, 1000)[0]["mean"]
    apart = differences([[zeros], [mean_of(of_rows[rows])]], np.arange(len(rows)), 1000)[0]["mean"]
    error = of_rows.std(ddof=1) / np.sqrt(40)
    assert width(together) == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert width(apart) < 0.3 * width(together)
    for some in _drawn(rows, 5):
        often = np.bincount(some, minlength=len(rows))
        of_row = [set(often[rows == row].tolist()) for row in range(40)]
        assert all(len(one) == 1 for one in of_row), "all of a row, or none"
        assert sum(map(sum, of_row)) == 40


def test_seeds_are_averaged_before_they_are_held_against_others() -> None:
    random = np.random.default_rng(3)
    one, seeds = random.normal(size=30), [random.normal(size=30) for _ in range(3)]
    found = differences([[mean_of(one)], [mean_of(seed) for seed in seeds]], np.arange(30), 200)[0]
    assert found["mean"].value == pytest.approx(np.mean([seed.mean() for seed in seeds]) - one.mean())


@pytest.mark.parametrize(("numbers", "draws"), [(0, 1000), (10**5, 1000), (2 * 10**6, 500), (10**9, 200)])
def test_large_data_is_drawn_less_often(numbers: int, draws: int) -> None:
    assert draws_for(numbers, np.arange(20)) == draws


@pytest.mark.parametrize("rows", [np.zeros(1), np.zeros(512), np.repeat(np.arange(19), 5)])
def test_of_a_few_rows_nothing_is_clear(rows: NDArray[np.float64]) -> None:
    """One row is the same on every draw, and its difference had an interval of no width."""
    of_rows = rows.astype(np.int64)
    assert draws_for(10, of_rows) == 0
    assert draws_for(10, np.arange(20)) == 1000
    one, other = np.full(len(rows), 0.1), np.full(len(rows), 0.2)
    found = differences([[mean_of(one)], [mean_of(other)]], of_rows, draws_for(10, of_rows))[0]["mean"]
    assert found.value == pytest.approx(0.1)
    assert found.to_json() == {"difference": found.value, "low": None, "high": None, "clear": False}


def test_differences_on_few_rows_are_told_without_intervals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(settings(folder), RUNS, split="validation")
    assert found.rows == 12
    json.dumps(found.to_json(), allow_nan=False)
    capsys.readouterr()
    show(found, Style.markdown)
    printed = capsys.readouterr().out
    assert "fewer than 20 rows" in printed
    assert "n.s." not in printed
    assert "95 %" not in printed
    assert f"{found.apart['single']['nll'].value:+.4f} |" in printed
    show(found, Style.csv)
    assert ",nll,single," in capsys.readouterr().out


# --- of runs ----------------------------------------------------------------------------------------------------


def found_in(folder: Path, *runs: str, picture: Path | None = None) -> Compared:
    return compare(settings(folder), runs or RUNS, picture=picture)


def test_figures_are_those_of_evaluate(folder: Path) -> None:
    found = found_in(folder)
    alone = {run: evaluate(settings(folder), run) for run in RUNS}
    hydra, single = found.sides
    assert (hydra.name, hydra.runs, single.name, single.runs) == ("hydra", RUNS[:2], "single", RUNS[2:])
    for section in ("quality", "fidelity"):
        for key, mean in hydra.figures[section].items():
            values = [
                (of.models["student"] or {})[key] if section == "quality" else of.fidelity[key]
                for of in (alone["hydra-s0"], alone["hydra-s1"])
            ]
            assert mean == pytest.approx(np.mean(values), rel=1e-5), key  # type: ignore[arg-type]
            assert hydra.spread[section][key] == pytest.approx(np.std(values, ddof=1), rel=1e-3, abs=1e-9)  # type: ignore[arg-type]
    assert set(single.spread["quality"].values()) == {None}
    apart = found.apart["single"]
    for key in ("nll", "accuracy", "mean_kl"):
        section = "fidelity" if key == "mean_kl" else "quality"
        theirs, own = single.figures[section][key], hydra.figures[section][key]
        assert theirs is not None
        assert own is not None
        assert apart[key].value == pytest.approx(theirs - own)
        low, high = apart[key].low, apart[key].high
        assert low is not None
        assert high is not None
        assert low <= apart[key].value <= high
    assert "diversity_explained" not in apart, "one head has none"
    assert all((folder / "runs" / run / "evaluations/test.json").is_file() for run in RUNS), "kept, as by evaluate"


def test_runs_of_a_seed_stand_together_and_others_apart(folder: Path) -> None:
    shutil.copytree(folder / "runs/hydra-s0", folder / "runs/again")
    assert [side.runs for side in found_in(folder, "hydra-s0", "again").sides] == [("hydra-s0",), ("again",)]
    assert [side.name for side in found_in(folder, "single", "hydra-s1").sides] == ["single", "hydra-s1"]
    (folder / "runs/hydra-s1/args.toml").unlink()
    assert [side.runs for side in found_in(folder, "hydra-s0", "hydra-s1").sides] == [("hydra-s0",), ("hydra-s1",)]


def test_a_calibrated_run_is_no_seed_of_one_that_is_not(folder: Path) -> None:
    run = Run.open(folder / "runs/hydra-s1")
    write_calibration(run.folder, Calibration(spread=2.0), run.weights)
    found = found_in(folder)
    assert [side.runs for side in found.sides] == [("hydra-s0",), ("hydra-s1",), ("single",)]
    assert found.apart["hydra-s1"]["model_uncertainty"].value != 0


# --- exported files ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(folder: Path) -> Path:
    """Of the first run a file of each kind, and one of less precision."""
    export(settings(folder), "hydra-s0", safetensors=True, program=True, fp16=True, force=True, card=False)
    return folder / "runs/hydra-s0/export"


def test_an_exported_file_and_its_run_are_never_significantly_apart(folder: Path, files: Path) -> None:
    names = [str(files / f"model{suffix}") for suffix in (".onnx", ".pt2", ".safetensors")]
    for first, *others in (["hydra-s0", *names], [*names, "hydra-s0"]):
        found = found_in(folder, first, *others)
        assert len(found.one_student) == len(others)
        for of in found.apart.values():
            assert of["nll"].value == pytest.approx(0, abs=1e-5)
            assert not any(difference.clear for difference in of.values())
    assert found.to_json()["one_student"] == list(found.one_student)


def test_rounding_is_no_difference_even_where_every_draw_has_it() -> None:
    always = Difference(2e-7, 1e-7, 3e-7)
    assert always.clear
    assert not replace(always, rounding=True).clear
    assert replace(always, rounding=True).to_json()["clear"] is False


def test_figures_of_files_are_those_of_evaluate_to_the_digit(folder: Path, files: Path) -> None:
    names = [str(files / name) for name in ("model.onnx", "model.pt2", "model.safetensors", "model-fp16.onnx")]
    found = found_in(folder, "single", *names)
    assert not found.one_student, "of another run's student"
    for name, side in zip(names, found.sides[1:], strict=True):
        alone = evaluate(settings(folder), name)
        assert side.runs == (Path(name).name,)
        assert side.figures["quality"] == alone.models["student"]
        assert side.figures["fidelity"] == alone.fidelity
        assert alone.worth is not None
        worth = alone.worth["student"]
        assert worth is not None
        wanted = worth.to_figures()
        timed = {"cost_latency"}
        for key, value in side.figures["worth"].items():
            assert key in timed or value == wanted[key], key


def test_a_file_of_less_precision_is_held_to_what_the_rows_say(folder: Path, files: Path) -> None:
    found = found_in(folder, "hydra-s0", str(files / "model-fp16.onnx"))
    assert not found.one_student
    assert not any(difference.rounding for difference in found.apart["model-fp16.onnx"].values())


def test_a_file_of_another_calibration_is_another_student(folder: Path, files: Path) -> None:
    away = shutil.copy(files / "model.onnx", folder / "away.onnx")
    run = Run.open(folder / "runs/hydra-s0")
    write_calibration(run.folder, Calibration(spread=2.0), run.weights)
    found = found_in(folder, "hydra-s0", str(away))
    assert not found.one_student
    assert found.apart["away.onnx"]["model_uncertainty"].clear


def test_files_and_folders_stand_for_themselves_beside_runs_of_several_seeds(folder: Path, files: Path) -> None:
    found = found_in(folder, "hydra-s0", "hydra-s1", "hydra-s0/export")
    assert [side.runs for side in found.sides] == [("hydra-s0", "hydra-s1"), ("model.onnx",)]
    with refused("model.onnx", f"edistill evaluate {files / 'model.onnx'}"):
        found_in(folder, str(files))
    with refused("given twice"):
        found_in(folder, str(files), str(files / "model.onnx"))


def test_a_clear_difference_is_told_with_its_digits() -> None:
    assert _difference(Difference(3.1e-6, 2e-6, 4.2e-6)) == "+3.1e-06 [+2.0e-06, +4.2e-06]"
    assert _difference(Difference(3.1e-6, -2e-6, 4.2e-6)) == "+0.0000 [-0.0000, +0.0000] n.s."
    assert _difference(Difference(-0.25, -0.5, -0.125)) == "-0.2500 [-0.5000, -0.1250]"


def test_one_thing_is_held_against_nothing(folder: Path) -> None:
    with refused("hydra-s0", "edistill evaluate hydra-s0"):
        found_in(folder, "hydra-s0")
    with refused("hydra-s0, hydra-s1", "seed"):
        found_in(folder, "hydra-s0", "hydra-s1")
    with refused("given twice"):
        found_in(folder, "single", "single")


def test_what_is_printed_says_what_the_rows_cannot_tell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = found_in(folder)
    json.dumps(found.to_json(), allow_nan=False)
    show(found, Style.csv)
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["section", "figure", "run", "value", "spread", "difference", "low", "high"]
    by_key = {(line[1], line[2]): line for line in lines[1:]}
    assert float(by_key["nll", "single"][5]) == found.apart["single"]["nll"].value
    assert by_key["nll", "hydra"][5:] == ["", "", ""]
    show(found, Style.markdown)
    printed = capsys.readouterr().out
    unclear = [key for key, of in found.apart["single"].items() if not of.clear and of.value == of.value]
    assert printed.count("n.s.") == sum(key in _shown(found) for key in unclear) + 1  # and in the caption


def _shown(found: Compared) -> set[str]:
    return {key for section in ("fidelity", "quality") for key in found.sides[1].figures[section]}


def test_many_runs_stand_in_several_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for copy in ("one", "two"):
        shutil.copytree(folder / "runs/single", folder / "runs" / copy)
    found = found_in(folder, "hydra-s0", "single", "one", "two")
    capsys.readouterr()
    show(found, Style.table)
    printed = capsys.readouterr().out
    assert printed.count("4 students on 24 rows of test") == 2
    assert printed.count("[low, high]") == 1
    assert len([line for line in printed.splitlines() if line.startswith("│ nll")]) == 2
    show(found, Style.markdown)
    assert capsys.readouterr().out.count("| nll") == 1


def test_the_picture_says_in_words_what_it_shows(folder: Path) -> None:
    found = found_in(folder, picture=folder / "worth.svg")
    tree = ElementTree.parse(folder / "worth.svg")
    told = " ".join(text for text in tree.getroot().itertext())
    for side in found.sides:
        worth = side.figures["worth"]
        assert f"{side.name} is worth {worth['prediction']:.1f} and costs {worth['cost_latency']:.1f}" in told
    found_in(folder, picture=folder / "worth.png")
    assert (folder / "worth.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_holds_any_name(folder: Path) -> None:
    name = "$x^{2$ & <b> \x1b[2J" + "long " * 20
    (folder / "runs/single").rename(folder / "runs" / name)
    found_in(folder, "hydra-s0", name, picture=folder / "worth.svg")
    told = " ".join(ElementTree.parse(folder / "worth.svg").getroot().itertext())
    assert "$x^{2$ & <b> \\x1b[2J" in told


@pytest.mark.parametrize(("name", "told"), [("worth.jpeg", "worth.svg"), ("worth", ".png"), ("no/worth.svg", "no")])
def test_a_picture_that_cannot_be_written_is_refused_first(folder: Path, name: str, told: str) -> None:
    with refused(name, told):
        found_in(folder, picture=folder / name)
    assert not (folder / "runs/single/evaluations").exists()
