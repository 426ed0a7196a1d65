"""Results of commands, wherever they lie: predictions, evaluations, reports and logs."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble_distill.runs.exported_files import SUFFIXES
from ensemble_distill.runs.folder import ARGS, EVALUATIONS, generation_name, outer
from ensemble_distill.runtime.files import DOCUMENT, read_whole
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.words import members_told, shell
from ensemble_distill.serving.target import is_earlier

Told = dict[str, Any]
Row = Mapping[str, Any]
FIRST = 3  # rows to show
LINE = 90  # characters of a text to show


def result(path: Path) -> Told | None:
    """The description of a result; None for any other file."""
    if not path.is_file():
        return None
    if path.name.startswith("events.out.tfevents."):
        return {"what": "a log for TensorBoard", "facts": {"bytes": path.stat().st_size}, "next": None}
    if path.suffix == ".npz":
        return _figures_of_rows(path)
    if path.suffix in (".csv", ".json", ".jsonl", ".parquet") and is_earlier(path) and path.stat().st_size:
        return _predictions(_rows(path))
    if path.suffix == ".jsonl":
        return _log(path)
    if path.suffix == ".json":
        return _document(path)
    return _page(path) if path.suffix == ".html" else None


# --- predictions ------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Sequence[Row]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        found: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
        return found
    text = read_whole(path).decode()
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    return [parse_json(line) for line in text.splitlines()] if path.suffix == ".jsonl" else parse_json(text)


def _predictions(rows: Sequence[Row]) -> Told:
    names = list(rows[0]) if rows else []
    facts: dict[str, Any] = {"rows": len(rows)}
    if "class" in names:
        likely = Counter(str(row["class"]) for row in rows).most_common(6)
        facts["classes"] = ", ".join(f"{name} ({count})" for name, count in likely)
    for name in names:
        if name.endswith("_uncertainty"):
            facts[f"mean {name.replace('_', ' ')}"] = _short(sum(float(row[name]) for row in rows) / len(rows))
    if "abstains" in names:
        facts["abstains on"] = sum(str(row["abstains"]).lower() == "true" for row in rows)
    shown = names[:8]
    return {
        "what": "predictions",
        "facts": facts | ({"columns": len(names)} if len(names) > len(shown) else {}),
        "columns": shown,
        "rows": [[_short(row[name]) for name in shown] for row in rows[:FIRST]],
        "next": None,
    }


# --- evaluations and reports ------------------------------------------------------------------------------------


def _document(path: Path) -> Told | None:
    record = parse_json(read_whole(path, DOCUMENT))
    if not isinstance(record, dict) or not {"schema", "run", "split", "rows"} <= record.keys():
        return None
    if "figures" in record and "verdict" in record:
        return {
            "what": f"what the report of {record['run']} draws, on {record['rows']:,} rows of {record['split']}",
            "facts": {"verdict": record["verdict"]["headline"]},
            "columns": ["figure", "says"],
            "rows": [[name, _begun(figure["told"])] for name, figure in record["figures"].items()],
            "next": _evaluate(record, path),
        }
    return _evaluation(record, path) if "models" in record else None


def _evaluate(record: Mapping[str, Any], path: Path) -> str | None:
    """The command that makes a document again, from the run whose folder contains it, or by the run's name.

    None if the name is ambiguous: that of a generation, or of a file, that is not found here.
    """
    if path.absolute().parent.name == EVALUATIONS:
        return f"edistill evaluate {shell(outer(path))}"
    name = str(record["run"])
    alone = bool(re.fullmatch(generation_name(r"\d+"), name)) or Path(name).suffix in SUFFIXES
    return None if alone and not Path(name).exists() else f"edistill evaluate {shell(name)}"


def _begun(text: str) -> str:
    """The beginning of a text, up to one line."""
    return text if len(text) <= LINE else f"{text[:LINE].rsplit(' ', 1)[0]} …"


def _evaluation(record: Mapping[str, Any], path: Path) -> Told:
    models: Mapping[str, Mapping[str, Any]] = {name: of for name, of in record["models"].items() if of is not None}
    figures = dict.fromkeys(name for of in models.values() for name in of)
    worth = (record.get("worth") or {}).get("student") or {}
    told = {
        f"worth in {name}": members_told(worth[name], name in worth.get("beyond", ()))
        for name in ("prediction", "uncertainty")
        if worth.get(name) is not None
    }
    return {
        "what": f"an evaluation of {record['run']} on {record['rows']:,} rows of {record['split']}",
        "facts": {"task": record["task"], **told},
        "columns": ["", *models],
        "rows": [[name, *(_short(of.get(name)) for of in models.values())] for name in figures],
        "next": _evaluate(record, path),
    }


def _figures_of_rows(path: Path) -> Told | None:
    """An .npz in the evaluations of a run or a chain, with one array per figure; only the names are read."""
    above = next((folder for folder in path.absolute().parents if folder.name == EVALUATIONS), None)
    if above is None or not (above.parent / ARGS).is_file():
        return None
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    return {
        "what": "the figures of each row of an evaluation, which compare draws from",
        "facts": {"figures": len(names)},
        "columns": ["figure"],
        "rows": [[name] for name in names],
        "next": f"edistill inspect {shell(path.with_suffix('.json'))}" if path.with_suffix(".json").is_file() else None,
    }


def _page(path: Path) -> Told | None:
    with path.open("rb") as file:
        start = file.read(1 << 12).decode(errors="replace")
    title = re.search(r"<title>([^<]*)</title>", start)
    beside = path.with_suffix(".json")
    if title is None or not beside.is_file() or _document(beside) is None:
        return None
    return {
        "what": "a report, a page for a browser",
        "facts": {"of": title[1], "bytes": path.stat().st_size},
        "next": f"edistill inspect {shell(beside)}",
    }


# --- logs -------------------------------------------------------------------------------------------------------


def _log(path: Path) -> Told | None:
    lines = [line for line in read_whole(path).split(b"\n") if line]
    try:
        found = [parse_json(line) for line in lines]
    except ValueError:
        return None
    if not found or not all(map(_is_of_step, found)):
        return None
    last: dict[str, Any] = {}
    for line in found:
        last |= line
    steps = f"{found[0]['step']:,} to {found[-1]['step']:,}"
    return {
        "what": "the log of a training",
        "facts": {"lines": len(found), "steps": steps},
        "columns": ["figure", "first", "last"],
        "rows": [
            [name, _short(next(line[name] for line in found if name in line)), _short(value)]
            for name, value in last.items()
            if name != "step"
        ],
        "next": None,
    }


def _is_of_step(line: Any) -> bool:
    """Whether a line has the figures of one step, and nothing else."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    return all(value is None or isinstance(value, int | float) for value in line.values())


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
