"""The log of the diversity study says what its tables hold."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "diversity"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("entries", "table"):  # other examples have files of these names
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: importlib.import_module(name) for name in ("table", "entries")}
    for name in found:
        del sys.modules[name]
    return found


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_log_holds_every_line_that_was_measured(
    modules: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    modules["table"].main(name)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) > 10
    log = (EXAMPLE / "study.md").read_text(encoding="utf-8")
    assert [line for line in lines if line not in log] == []


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_every_line_is_of_an_entry_and_every_entry_has_one(modules: dict[str, Any], name: str) -> None:
    entries = [entry.name for entry in modules["entries"].SEARCH[name]]
    assert len(set(entries)) == len(entries)
    assert set(modules["entries"].FINAL[name]) <= set(entries)
    measured = [line["entry"] for line in modules["table"].lines(name, "search.csv")]
    assert sorted(measured) == sorted(entries)
    for line in modules["table"].lines(name, "final.csv"):
        assert line["split"] == "test"
        assert line["entry"] in modules["entries"].FINAL[name]


def test_entries_of_one_architecture_differ_in_training_alone(modules: dict[str, Any]) -> None:
    of = {entry.name: entry.architecture for entry in modules["entries"].SEARCH["mnist"]}
    assert of["rank-32"] == of["rank-32-solved"] == of["rank-32-ods"]
    assert len({of[name] for name in ("rank-32", "rank-96", "rank-96-stages-49", "plain")}) == 4
