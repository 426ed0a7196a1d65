"""How `evaluate` prints: one table for people, pipes for pages, tidy rows for plots, and JSON."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import one_head
import pytest
import tiny
import tiny_regression
from evaluate_helpers import kept_document
from tiny import settings
from typer.testing import CliRunner, Result

from ensemble_distill.cli import render
from ensemble_distill.cli.app import app
from ensemble_distill.cli.evaluate import show
from ensemble_distill.cli.flags import Style
from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.names import CONTROLS
from ensemble_distill.runtime.numbers import number, short
from ensemble_distill.settings import load_settings
from ensemble_distill.workflows import evaluate as workflow
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members and two runs, heads and one. Evaluations are all that is written to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("formats") / "tiny", 4)
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "heads", "method.closed-form": False}))  # trained so little, it would harm
    train(settings(folder, {"output.name": "one", "train.method": one_head.SPEC}))
    return folder


@pytest.fixture
def evaluate(made: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`edistill evaluate` with some arguments, in that folder."""
    monkeypatch.chdir(made)

    def run(line: str) -> Result:
        result = CliRunner().invoke(app, ["evaluate", *shlex.split(line)])
        assert result.exit_code == 0, result.stderr
        return result

    return run


def kept(folder: Path, run: str) -> dict[str, Any]:
    """The document of the last evaluation, whose latencies no other one has."""
    return kept_document(folder / "runs" / run / "evaluations/test.json")


def headers(stdout: str) -> list[list[str]]:
    """The columns of each printed table."""
    lines = [line for line in stdout.splitlines() if line.startswith("┃")]
    return [[cell.strip() for cell in line.strip("┃").split("┃")] for line in lines]


def cells(stdout: str, bar: str) -> dict[str, list[str]]:
    """The rows of a printed table by their labels; the first of those that share one."""
    rows: dict[str, list[str]] = {}
    for line in stdout.splitlines():
        if line.startswith(bar):
            label, *values = (cell.strip() for cell in line.strip(bar).split(bar))
            rows.setdefault(label, values)
    return rows


# --- the table --------------------------------------------------------------------------------------------------


def test_one_run_in_one_table(evaluate: Any, made: Path) -> None:
    result = evaluate("heads")
    found, document = cells(result.stdout, "│"), kept(made, "heads")
    explained = document["fidelity"]["diversity_explained"]
    shown = ("ensemble", "member", "best-2", "best-3", "student")
    student = document["worth"]["student"]
    assert result.stdout.startswith(
        f"heads on 10 rows of test: worth {student['prediction']:.1f} of 4 members in prediction and "
        f"{student['uncertainty']:.1f} in uncertainty, costs {student['cost']['latency']:.1f} in latency, "
        f"explains {explained:.0%} of their diversity\n"
    )
    assert found["in prediction"][:4] == ["4.0", *(f"{document['worth'][m]['prediction']:.1f}" for m in shown[2:])]
    assert found["in uncertainty"][6] == f"{student['uncertainty_control']:.1f}", "in the control's own column"
    near, alone = headers(result.stdout)
    assert near == ["", "ensemble", "best-2", "best-3", "heads", "collapsed", "offsets", "total uncertainty", "halves"]
    assert alone == ["", "ensemble", "member", "best-2", "best-3", "heads"]
    models = document["models"]
    for figure in ("accuracy", "nll", "brier", "ece", "total_uncertainty", "model_uncertainty"):
        assert found[figure.replace("_", " ")] == [number(models[model][figure]) for model in shown]
    controls = document["fidelity_controls"]
    offsets = number(controls["offsets"]["diversity_explained"])
    assert found["diversity explained"] == ["1", "–", "–", number(explained), "0.0000", offsets, "–", "–"]
    assert found["model uncertainty spearman"][4:] == [
        number(figures["model_uncertainty_spearman"]) for figures in controls.values()
    ]
    assert found["mean kl"][0] == "0", "the ensemble's own column is the aim"
    assert found["gap closed"][1:4] == [
        number(figures["gap_closed"]) for figures in (*document["subensemble_fidelity"].values(), document["fidelity"])
    ]
    assert found["by model uncertainty"] == [
        number(document["ood"]["noise"][model]["model_uncertainty"]) for model in shown
    ]
    assert "out of distribution: noise (AUROC)" in found
    assert found["parameters"] == [short(document["cost"][model]["parameters"]) for model in shown]
    assert "latency, one thread (ms)" in found
    assert "uncertainty (nats)" in found
    below = result.stdout[result.stdout.rindex("┘") :]
    names = " + ".join(document["subensembles"]["best-2"])
    assert f"best-2: {names}; best-3: " in below
    assert "collapsed: every head says the student's mean.\n" in result.stdout
    assert "under shifts" not in result.stdout
    repeated = {"model uncertainty spearman control", "collapsed kl"}
    assert not repeated & found.keys(), "the columns tell it"


def test_a_line_of_the_controls(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "_result", None)
    found = workflow.evaluate(settings(made), "heads")
    l1 = {"collapsed": 1.0, "offsets": 0.34125, "total_uncertainty": 0.5, "halves": 0.08}
    made_up = replace(
        found,
        fidelity={**found.fidelity, "model_uncertainty_l1": 0.25},
        subensemble_fidelity={
            model: {**figures, "model_uncertainty_l1": 0.75}
            for model, figures in found.subensemble_fidelity.items()
            if figures is not None
        },
        fidelity_controls={
            name: {**found.fidelity_controls[name], "model_uncertainty_l1": l1[name]} for name in CONTROLS
        },
    )
    show(Comparison((made_up,)), Style.markdown)
    lines = capsys.readouterr().out.splitlines()
    assert "|  | ensemble | best-2 | best-3 | heads | collapsed | offsets | total uncertainty | halves |" in lines
    assert "| model uncertainty l1 | 0 | 0.7500 | 0.7500 | 0.2500 | 1.0000 | 0.3412 | 0.5000 | 0.0800 |" in lines


def test_several_runs_are_columns(evaluate: Any, made: Path) -> None:
    result = evaluate("one heads")
    found = cells(result.stdout, "│")
    assert result.stdout.startswith("2 runs on 10 rows of test\n")
    assert headers(result.stdout) == [
        ["", "ensemble", "halves", "best-2", "best-3", "one", "heads"],
        ["", "ensemble", "member", "best-2", "best-3", "one", "heads"],
    ]
    assert "Control for the Spearman correlation: " in result.stdout
    control = kept(made, "heads")["fidelity"]["model_uncertainty_spearman_control"]
    assert found["model uncertainty spearman control"][4:] == ["–", number(control)]
    halves = kept(made, "heads")["fidelity_controls"]["halves"]
    assert found["model uncertainty l1"][:2] == ["0", number(halves["model_uncertainty_l1"])]
    nll = [kept(made, run)["models"]["student"]["nll"] for run in ("one", "heads")]
    assert found["nll"][4:] == [number(value) for value in nll]
    assert found["diversity explained"][4] == "–", "one head has none"


def test_figures_that_apply_to_no_model_are_left_out_of_the_table(evaluate: Any) -> None:
    found = cells(evaluate("one").stdout, "│")
    assert "gap closed" in found
    assert "diversity explained" not in found


def test_shifts_are_a_row_for_each_severity(evaluate: Any, made: Path) -> None:
    result = evaluate("heads --shifts")
    document = kept(made, "heads")
    _, table = result.stdout.split("under shifts\n")
    rows = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert rows[:3] == ["accuracy", "none", "blur 1 (2 %)"]
    assert rows.count("rotation 3 (54°)") == rows.count("none") == 5
    assert [row for row in rows if not row.endswith(")") and row != "none"] == [
        *("accuracy", "nll", "total uncertainty", "data uncertainty", "model uncertainty")
    ]
    first = cells(table, "│")
    assert first["rotation 3 (54°)"] == [
        number(document["shifts"]["rotation"]["3"][model]["accuracy"])
        for model in ("ensemble", "member", "best-2", "best-3", "student")
    ]
    assert first["none"][0] == number(document["models"]["ensemble"]["accuracy"])
    assert "evaluating shifts of test: 250 rows" in result.stderr


@pytest.mark.thorough
def test_collapsed_heads_are_told_of_by_the_runs_name(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.evaluation.remarks.COLLAPSED", 2.0)  # every head has
    for style in ("table", "markdown"):
        said = evaluate(f"one heads --format {style}").stderr
        assert said.count("predict nearly the same") == 1
        assert "The heads of heads predict nearly the same: they explain " in said
    monkeypatch.setattr("ensemble_distill.evaluation.remarks.COLLAPSED", -1e9)
    assert "predict nearly the same" not in evaluate("heads").stderr


# --- the others -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_markdown_is_the_same_table_with_pipes(evaluate: Any) -> None:
    found = evaluate("one heads --shifts --format markdown").stdout
    first, second = found.split("**under shifts**")
    for text in (first, second):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {8}
        assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert first.startswith("**2 runs on 10 rows of test**\n\n|  | ensemble | halves | best-2 |")
    assert "**each model by itself**\n\n|  | ensemble | member |" in first
    rows, table = cells(found, "|"), cells(evaluate("one heads --shifts").stdout, "│")
    assert rows["nll"] == table["nll"]
    assert rows["rotation 3 (54°)"] == table["rotation 3 (54°)"]
    assert "**cost of one row**" in rows


@pytest.mark.thorough
def test_csv_is_tidy_and_exact(evaluate: Any, made: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(evaluate("one heads --shifts --format csv").stdout)))
    assert list(rows[0]) == ["section", "figure", "model", "value"]
    found = {(row["section"], row["figure"], row["model"]): row["value"] for row in rows}
    assert len(found) == len(rows), "each once"
    documents = {run: kept(made, run) for run in ("one", "heads")}
    for run, document in documents.items():
        models = document["models"]
        assert float(found["quality", "nll", run]) == models["student"]["nll"]
        assert float(found["quality", "nll", "ensemble"]) == models["ensemble"]["nll"]
        assert float(found["uncertainty", "total_uncertainty", run]) == models["student"]["total_uncertainty"]
        assert float(found["fidelity", "mean_kl", run]) == document["fidelity"]["mean_kl"]
        assert int(found["cost", "macs", run]) == document["cost"]["student"]["macs"]
        outside = document["ood"]["noise"]["student"]["total_uncertainty"]
        assert float(found["ood/noise", "total_uncertainty", run]) == outside
        assert float(found["shifts/blur/5", "brier", run]) == document["shifts"]["blur"]["5"]["student"]["brier"]
    halves = documents["heads"]["fidelity_controls"]["halves"]
    assert float(found["fidelity", "model_uncertainty_l1", "halves"]) == halves["model_uncertainty_l1"]
    assert ("fidelity", "model_uncertainty_l1", "offsets") not in found, "of a single run alone"
    near = documents["one"]["subensemble_fidelity"]["best-2"]
    assert float(found["fidelity", "gap_closed", "best-2"]) == near["gap_closed"]
    assert found["fidelity", "diversity_explained", "one"] == found["uncertainty", "model_uncertainty", "member"] == ""


@pytest.mark.thorough
def test_json_by_either_name(evaluate: Any, made: Path) -> None:
    for line in ("heads --json", "heads --format json"):
        assert json.loads(evaluate(line).stdout) == kept(made, "heads")
    both = json.loads(evaluate("one heads --json").stdout)
    assert both["runs"] == [kept(made, "one"), kept(made, "heads")]


def test_an_unknown_format_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    result = CliRunner().invoke(app, ["evaluate", "--format", "html"])
    assert result.exit_code == 2
    assert "not one of table, markdown, csv, json." in result.stderr


def test_numbers_are_in_the_targets_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_regression.make_folder(tmp_path / "numbers")
    monkeypatch.chdir(folder)
    numbers = load_settings(folder / "edistill.toml")
    cache_logits(numbers)
    train(numbers)
    found = cells(CliRunner().invoke(app, ["evaluate"]).stdout, "│")
    for label in ("rmse", "nll", "coverage95", "uncertainty (variances, in the target's unit squared)"):
        assert label in found
    assert "agreement" not in found, "numbers have no classes to agree on"


# --- cells ------------------------------------------------------------------------------------------------------


def test_a_figure_shows_what_it_has() -> None:
    for value, shown in [
        (None, "–"),
        (0, "0.0000"),
        (0.98765, "0.9877"),
        (-8.12345, "-8.1235"),
        (9.97e-6, "9.97e-06"),
        (-0.0004, "-4.00e-04"),
        (0.001, "0.0010"),
        (99.12345, "99.1235"),
        (2078.94, "2,078.9"),
    ]:
        assert number(value) == shown


def test_a_count_is_short() -> None:
    for value, shown in [
        (None, "–"),
        (0, "0"),
        (290, "290"),
        (999.6, "1k"),
        (1000, "1k"),
        (71_760, "71.8k"),
        (999_999, "1M"),
        (12_512_345, "12.5M"),
        (4_089_184_256, "4.09G"),
        (2.5e15, "2500T"),
    ]:
        assert short(value) == shown


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What went to stdout, outside any command."""
    monkeypatch.setattr(render, "_result", None)
    return lambda: capsys.readouterr().out


def test_a_pipe_in_a_cell_is_no_column(printed: Callable[[], str]) -> None:
    render.markdown("t", ["", "a|b"], {"s": [["x|y", "1"]]})
    assert printed() == "**t**\n\n|  | a\\|b |\n| --- | ---: |\n| **s** |  |\n| x\\|y | 1 |\n\n"


def test_what_looks_like_markup_is_printed_as_it_is(printed: Callable[[], str]) -> None:
    render.grid("[red]t[/]", ["", "[b]a"], {"[s]": [["[x]", "1"]]}, ["[c]"])
    shown = printed()
    for text in ("[red]t[/]", "[b]a", "[s]", "[x]", "[c]"):
        assert text in shown
