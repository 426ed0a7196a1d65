"""What `edistill inspect` shows of each kind of record, in about twenty lines; `--json` shows everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_distill.cli.inspected_facts import (
    DIFFER,
    HEX,
    Record,
    after,
    answers,
    columns,
    differing,
    few,
    in_batches,
    listed,
    made_from,
    member_facts,
    names,
    opsets,
    options,
    plain,
    ports,
    preprocessing,
    reference,
    size,
    split_of,
    student,
    student_facts,
    versions,
)
from ensemble_distill.facts import ENSEMBLE
from ensemble_distill.runs.folder import EXPORTS, exported_in, flags_of
from ensemble_distill.runtime.words import counted, shell

ROWS = 12  # shown of a table


@dataclass(frozen=True)
class Sheet:
    """What is shown of a path.

    Attributes:
        title: what it is, in one line.
        facts: names and values, one per line; empty values are left out.
        columns, rows: a table below them; omitted if it has no rows.
        next: the command that comes next; None if there is none.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    next: str | None = None


def sheet_of(path: str, record: Record, *, own_teachers: bool = False) -> Sheet:
    """The sheet for a record from `workflows.inspect`.

    Args:
        own_teachers: whether `path` is `teachers.path` of the current settings.
    """
    if record["kind"] == "teachers":
        return _runs(path, record) if "runs" in record else _teachers(path, record, own_teachers)
    return SHEETS[record["kind"]](path, record)


# --- kinds ------------------------------------------------------------------------------------------------------


def _run(path: str, record: Record) -> Sheet:
    files: Sequence[str] = record["files"]
    evaluated = [name for name in files if name.startswith("evaluations/") and name.endswith(".json")]
    exported = [f"{EXPORTS}/{name}" for name in exported_in(files)]
    stale: Sequence[str] = record.get("stale", ())
    return Sheet(
        f"{path}: a student of {counted(len(record['members']), 'member')} by {record['method']['name']}",
        [
            *student_facts(record),
            ("a trial", f"of {record['limit']:,} rows of each split at most (limit)" if "limit" in record else ""),
            ("calibrated", "yes" if "calibration.json" in files else "no"),
            ("evaluated on", listed([split_of(name) for name in evaluated])),
            ("exported", listed(exported)),
            ("stale", listed(stale)),
            ("made with", versions(record["versions"])),
        ],
        next=_next_of_run(path, evaluated, exported, stale),
    )


def _next_of_run(path: str, evaluated: Sequence[str], exported: Sequence[str], stale: Sequence[str]) -> str:
    if not evaluated:
        return f"edistill evaluate {shell(path)}"
    for document in (name for name in stale if name.startswith("evaluations/")):
        split = "" if document.endswith("/test.json") else f" --split {document[:-5].rpartition('/')[2]}"
        return f"edistill evaluate {shell(path)}{split}" + (" --shifts" if "/shifts/" in document else "")
    if again := flags_of(Path(name).name for name in stale if name.startswith(f"{EXPORTS}/")):
        return f"edistill export {shell(path)} {again}"
    if "export/model.onnx" not in exported:
        return f"edistill export {shell(path)} --onnx"
    return f"edistill predict INPUTS --model {shell(f'{path}/export/model.onnx')}"


def _safetensors(path: str, record: Record) -> Sheet:
    made = versions({"edistill": record["edistill"], **record["versions"]})
    return Sheet(
        f"{path}: an exported student of {counted(len(record['members']), 'member')} by {record['method']['name']}",
        [
            *student_facts(record),
            ("thresholds of", reference(record.get("reference"))),
            *made_from(record),
            ("stale", record.get("stale", "")),
            ("made with", made),
            ("size", size(record)),
        ],
        next=_again(record) or f"edistill predict INPUTS --model {shell(path)}",
    )


def _onnx(path: str, record: Record) -> Sheet:
    seen = record["input"]
    sizes = [*seen["shape"][1:], seen["shape"][0], "uint8"] if "type" in seen else seen["shape"]
    shape = ", ".join(["B", *map(str, sizes)])
    how = preprocessing(seen["preprocessing"])
    takes = how if seen["kind"] == "several" else f"{seen['name']} ({shape})" + after(", ", how)
    of = counted(len(record["members"]), "member")
    what = f"ensemble of {of}" if record["method"] == ENSEMBLE else f"student of {of} by {record['method']}"
    return Sheet(
        f"{path}: an exported {what}",
        [
            ("answers", answers(record)),
            ("takes", takes),
            ("from columns", columns(seen.get("columns"))),
            ("gives", ", ".join(record["outputs"])),
            ("thresholds of", reference(record.get("reference"))),
            *member_facts(record["members"], ("model", "output")),
            *made_from(record),
            ("stale", record.get("stale", "")),
            ("precision", record.get("precision", "")),
            ("made with", f"edistill {record['version']}"),
            ("opset", f"{opsets(record)}, IR version {record['ir_version']}"),
            ("size", size(record)),
        ],
        next=_again(record) or f"edistill predict INPUTS --model {shell(path)}",
    )


def _program(path: str, record: Record) -> Sheet:
    return Sheet(
        f"{path}: an exported program of {counted(len(record['members']), 'member')} by {record['method']}",
        [
            ("answers", answers(record)),
            ("takes", f"rows of {record['kind_of_rows']} (B, {', '.join(map(str, record['shape']))})"),
            ("gives", listed(record["outputs"])),
            ("thresholds of", reference(record.get("reference"))),
            *member_facts(record["members"], ("model", "output")),
            *made_from(record),
            ("stale", record.get("stale", "")),
            ("made with", f"edistill {record['version']}"),
            ("size", size(record)),
        ],
        next=_again(record) or f"edistill predict INPUTS --model {shell(path)}",
    )


def _graph(path: str, record: Record) -> Sheet:
    member = record["member"]
    return Sheet(
        f"{path}: an ONNX graph that edistill did not write",
        [
            ("takes", ports(record["inputs"])),
            ("gives", ports(record["outputs"])),
            ("classes", names([str(name) for name in record["classes"] or ()])),
            ("as a member", f"it says {member['output']}" if member else f"no: {record['problem']}"),
            ("written by", record["producer"]),
            ("opset", opsets(record)),
            ("operators", f"{record['operators']:,}"),
            ("sha256", f"{record['sha256'][:HEX]}…"),
            ("size", size(record)),
        ],
        next="edistill init FOLDER, of the folder that it and the other members are in" if member else None,
    )


def _again(record: Record) -> str | None:
    """The command that exports a stale file again; None if it is up to date."""
    return record["stale"].rpartition("Export again: ")[2] if "stale" in record else None


def _chain(path: str, record: Record) -> Sheet:
    generations: Mapping[str, Record] = record["generations"]
    return Sheet(
        f"{path}: {counted(len(generations), 'generation')} by {record['method']['name']}",
        [
            ("answers", record["task"]),
            ("options", options(record["method"]["options"])),
            *member_facts(record["teachers"], ("model", "output"), "teachers"),
            ("stale", listed(record.get("stale", ()))),
        ],
        ("generation", "learned from", "student", "sha256"),
        [
            (name, few(one["learned_from"]), student(one["student"]), one["sha256"][:HEX])
            for name, one in generations.items()
        ],
        next=f"edistill evaluate {shell(path)}",
    )


def _cache(path: str, record: Record) -> Sheet:
    caching = record["caching"]
    made = [versions(caching.get("versions", {})), after("on ", caching.get("device", ""))]
    partial = any(one["answered"] < 1 for one in record["splits"].values())
    return Sheet(
        f"{path}: what {counted(len(record['members']), 'member')} say of {counted(len(record['splits']), 'split')}",
        [
            ("answers", answers(record)),
            *member_facts(record["members"], ("model", "output", "preprocessing")),
            ("asked", in_batches(len(record["members"]), caching.get("together", ()))),
            ("records", f"{record['dtype']}, {size(record)}"),
            ("decoded", listed([f"{name} ({size(one)})" for name, one in record.get("decoded", {}).items()])),
            ("stored views", listed(record.get("pushed", ()))),
            ("drawn", listed([f"{one['samples']} a row of {name}" for name, one in record.get("drawn", {}).items()])),
            ("made with", ", ".join(filter(None, made))),
        ],
        ("split", "rows", "views", "transform", "labels", *(("each member answers",) if partial else ())),
        [
            (
                *(name, f"{one['rows']:,}", str(one["views"]), one["transform"], "yes" if one["labels"] else "no"),
                *((f"{one['answered']:.0%}",) if partial else ()),
            )
            for name, one in record["splits"].items()
        ],
        next="edistill train",
    )


def _teachers(path: str, record: Record, own: bool) -> Sheet:
    members: Sequence[Record] = record["members"]
    facts = member_facts(members, ("model", "output", "preprocessing", "units", "variance", "weights"))
    facts = [fact for fact in facts if fact[1] != DIFFER]  # differing facts are in the table
    columns, rows = differing(members)
    return Sheet(
        f"{path}: {counted(len(members), 'member')}",
        [*facts, ("sha256", members[0]["sha256"] if len(members) == 1 else "")],
        columns,
        rows,
        next="edistill cache-logits" + ("" if own else f" --set teachers.path={path}"),
    )


def _runs(path: str, record: Record) -> Sheet:
    runs: Mapping[str, Record] = record["runs"]
    rows = [
        (
            name,
            one.get("method", "–"),
            one.get("problem") or counted(one["predictions"], one["of"]),
            listed(one.get("evaluated", ())) or "no",
            listed(one.get("exported", ())) or "no",
            listed(one.get("stale", ())) or "no",
        )
        for name, one in runs.items()
    ]
    waiting = [
        name for name, one in runs.items() if "problem" not in one and (one.get("stale") or not one["evaluated"])
    ]
    verb, name = ("evaluate", waiting[0]) if waiting else ("inspect", next(iter(runs)))
    return Sheet(
        f"{path}: {counted(len(runs), 'run')}",
        [("as teachers", counted(len(record["members"]), "member") if "members" in record else "")],
        ("run", "method", "predicts by", "evaluated on", "exported", "stale"),
        rows,
        next=f"edistill {verb} {shell(path.rstrip('/') + '/' + name)}",
    )


def _data(path: str, record: Record) -> Sheet:
    return Sheet(
        f"{path}: {record['rows']:,} rows of {record['holds']}",
        [
            ("classes", names(record["classes"]) if record["classes"] else "not named"),
            ("labels", "yes" if record["labels"] else "no"),
            ("digest", f"{record['digest'][:HEX]}…, of {record['digest_scope']}"),
            *(("note", remark) for remark in record.get("remarks", ())),
        ],
    )


def _folder(path: str, record: Record) -> Sheet:
    return Sheet(
        f"{path}: {counted(len(record['data']), 'data set')}",
        [],
        ("name", "rows", "holds", "classes", "labels"),
        [
            (name, "–", one["problem"], "–", "–")
            if "problem" in one
            else (
                name,
                f"{one['rows']:,}",
                one["holds"],
                str(len(one["classes"])) if one["classes"] else "not named",
                "yes" if one["labels"] else "no",
            )
            for name, one in record["data"].items()
        ],
        next=f"edistill inspect {shell(path.rstrip('/') + '/' + next(iter(record['data'])))}",
    )


def _part(path: str, record: Record) -> Sheet:
    return Sheet(
        f"{path}: {record['what']}",
        [(name, f"{value:,}" if type(value) is int else plain(value)) for name, value in record["facts"].items()],
        record.get("columns", ()),
        record.get("rows", []),
        next=record["next"],
    )


SHEETS: Mapping[str, Callable[[str, Record], Sheet]] = {
    "run": _run,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "program": _program,
    "graph": _graph,
    "chain": _chain,
    "cache": _cache,
    "runs": _runs,
    "data": _data,
    "part": _part,
    "folder": _folder,
}
