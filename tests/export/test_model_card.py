"""The model card and the settings beside exported files."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from runs_helpers import RUN
from tiny import contents, settings

from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.names import OBEYED
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.seals import read_sealed_json
from ensemble_distill.settings import load_settings
from ensemble_distill.workflows.export import export

FIGURES = ("accuracy", "nll", "model_uncertainty")


def card_of(folder: Path) -> str:
    return (folder / RUN / "export/README.md").read_text()


def test_the_card_has_the_figures_of_evaluate_and_names_what_it_is_made_of(runs: Path) -> None:
    card, run = card_of(runs), Run.open(runs / RUN)
    document, _ = read_sealed_json(runs / RUN / "evaluations/test.json")
    for figure in FIGURES:
        (line,) = (line for line in card.splitlines() if line.startswith(f"| {figure.replace('_', ' ')} |"))
        shown = f"{document['models']['student'][figure]:.4f}"
        assert line.endswith(f" {shown} |"), "the student stands last"
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| ")]
    (_, *models) = next(row for row in table if not row[0])
    worth = {"worth in prediction, in members": "prediction", "worth in uncertainty, in members": "uncertainty"}
    for row in table:
        for name, cell in zip(models, row[1:], strict=False):
            of = (document["worth"].get(name) or {}).get(worth.get(row[0], ""))
            if row[0] in FIGURES or of is not None:
                wanted = document["models"][name][row[0]] if row[0] in FIGURES else of
                assert float(cell.removeprefix("more than ")) == pytest.approx(wanted, abs=0.51), (row[0], name)
    for member in run.provenance.members:
        assert f"| {member.name} | `{member.sha256}` |" in card
    for said in (run.weights, *run.provenance.trained_on.values(), f"spread {run.calibration.spread:.4g}"):
        assert said in card
    assert all(f"`{name}_uncertainty`" in card for name in ("total", "data", "model"))


def test_its_five_lines_run(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", card_of(runs), re.DOTALL)
    assert len(code.splitlines()) == 5
    monkeypatch.chdir(runs / RUN / "export")
    Path("code.py").write_text(code)
    logits, uncertainty = runpy.run_path("code.py")["found"]
    assert np.isclose(np.exp(logits).sum(), 1)
    assert uncertainty.shape == (1,)
    assert capsys.readouterr().out


def test_the_settings_beside_are_those_of_the_run(runs: Path) -> None:
    assert load_settings(runs / RUN / "export/edistill.toml") == load_settings(runs / RUN / "args.toml")


def test_without_an_evaluation_of_these_weights_there_is_no_table(runs: Path) -> None:
    export(settings(runs), "other", onnx=True)
    card = (runs / "runs/other/export/README.md").read_text()
    assert "edistill evaluate" in card
    assert "| nll |" not in card


def test_what_somebody_else_wrote_stays(runs: Path) -> None:
    folder = runs / RUN / "export"
    for name, text in (("README.md", "# Mine\n"), ("edistill.toml", 'task = "regression"\n')):
        (folder / name).write_text(text)
    told = Silent()
    found = export(settings(runs), "hydra-s0", safetensors=True, progress=told)
    assert not found.beside
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert [name for name in ("README.md", "edistill.toml") for one in told.warnings if name in one] == [
        "README.md",
        "edistill.toml",
    ]


def test_nobody_needs_a_card(runs: Path) -> None:
    before = {name: of for name, of in contents(runs / "runs/other").items() if name.startswith("export")}
    found = export(settings(runs), "other", safetensors=True, card=False)
    after = {name for name in contents(runs / "runs/other") if name.startswith("export")}
    assert not found.beside
    assert after - before.keys() == {"export/model.safetensors", "export/config.json"}


def test_an_export_that_is_stale_is_not_on_the_card(runs: Path) -> None:
    graph = runs / RUN / "export/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    export(settings(runs), "hydra-s0", safetensors=True)
    assert "`model.onnx`" not in card_of(runs)
    assert "`model.safetensors`" in card_of(runs)


def test_no_name_is_obeyed_or_ends_a_cell() -> None:
    from ensemble_distill.exporting.model_card import About, model_card
    from ensemble_distill.facts import Member
    from ensemble_distill.tasks.classification import Classification

    name = "a|b\n# c\x1b[31m`d`<e>"
    task = Classification(("x", "y"))
    card = model_card(About(name, task, "hydra", [Member("m|n`", "0" * 64)]), [])
    assert not OBEYED.search(card)
    assert "\n# c" not in card
    assert r"a\|b" in card
    assert r"| m\|n\` | `" in card
