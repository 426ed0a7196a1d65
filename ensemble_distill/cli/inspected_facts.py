"""The wording of a record's facts in `edistill inspect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ensemble_distill.runtime.words import counted, megabytes
from ensemble_distill.tasks import open_task

Record = Mapping[str, Any]

FEW = 6  # names that are shown in full
SHOWN = 12  # columns that are shown
HEX = 12  # digits of a sha256 that are shown
DIFFER = "differ: see --json"


def answers(record: Record) -> str:
    targets = [f"{t['name']} [{t['unit']}]" if t["unit"] else t["name"] for t in record.get("targets", ())]
    listed = targets or record["classes"]
    called = open_task(record["task"]).called
    return f"{record['task']}, {len(listed)} {called}: {names(listed)}" if listed else str(record["task"])


def student_facts(record: Record) -> list[tuple[str, str]]:
    seen = record["input"]
    shape, how = " × ".join(map(str, seen["shape"])), preprocessing(seen["preprocessing"])
    return [
        ("answers", answers(record)),
        ("student", student(record["student"])),
        ("options", options(record["method"]["options"])),
        ("input", how if seen["kind"] == "several" else f"{seen['kind']} {shape}" + after(": ", how)),
        *member_facts(record["members"], ("model", "output")),
        ("trained on", listed(record["trained_on"])),
    ]


def student(student: Record) -> str:
    kwargs = options(student["kwargs"])
    bodies = [
        f"{student['bodies']} bodies" if student.get("bodies", 1) > 1 else "",
        model(student["model"]),
        f"({kwargs})" if kwargs else "",
        "compressed" if student.get("compressed") else "",
    ]
    heads = counted(student["heads"], "head")
    if student["form"] == "rank-one":
        how = f"{heads} by rank-one factors"
    elif student.get("last_stage"):
        how = f"{heads}, each the last stage of a member"
    elif student["hidden"]:
        how = f"{heads} of hidden sizes {listed(student['hidden'])}"
    else:
        how = heads.replace(" ", " linear ")
    own = ", each on its own body" if student.get("own_body") else ""
    return f"{' '.join(filter(None, bodies))}, {how}{own}"


def member_facts(members: Sequence[Record], keys: Sequence[str], label: str = "members") -> list[tuple[str, str]]:
    """The members' names, and a line for each key: the value if all members share it, else `DIFFER`."""
    facts = [(label, few([member["name"] for member in members]))]
    for key in keys:
        title, shown = MEMBER_FACTS[key]
        told = {shown(member.get(key)) for member in members}
        facts.append((title, told.pop() if len(told) == 1 else DIFFER))
    return facts


def differing(members: Sequence[Record]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """A table of the facts in which members differ: its columns and rows, both empty if there are none."""
    keys = [
        key
        for key, (_, shown) in MEMBER_FACTS.items()
        if len({shown(member.get(key)) for member in members}) > 1
    ]  # fmt: skip
    if not keys:
        return (), []
    rows = [[member["name"], *(MEMBER_FACTS[key][1](member.get(key)) or "–" for key in keys)] for member in members]
    return ["member", *(MEMBER_FACTS[key][0] for key in keys)], rows


def preprocessing(how: Record | None) -> str:
    if how is None:
        return ""
    if "parts" in how:
        return "; ".join(map(taken, how["parts"]))
    if "tokenizer" in how:
        return f"{' and '.join(how['fields'])} of {how['length']} tokens, tokenizer {how['tokenizer']['sha256'][:12]}…"
    told = [" × ".join(map(str, how["size"])), f"mean {numbers(how['mean'])}", f"std {numbers(how['std'])}"]
    crop = [] if how["crop_pct"] == 1 else [f"{how['crop_mode']} crop {how['crop_pct']:g}"]
    return ", ".join([*told, how["interpolation"], *crop, *(["gray"] if how.get("channels") == 1 else [])])


def taken(part: Record) -> str:
    """One of several arrays, as the network receives it: "pixel_values (B, 3, 32, 32): …"."""
    if part["kind"] == "text":
        return preprocessing(part["preprocessing"])
    shape = ", ".join(map(str, ["B", *part["shape"]]))
    said = [preprocessing(part["preprocessing"])]
    said += [] if part["name"] == part["called"] else [f"the data's {part['name']}"]
    return f"{part['called']} ({shape})" + after(": ", ", ".join(filter(None, said)))


def columns(record: Record | None) -> str:
    """The columns that make a row of a table: "age, deck (A, B, C; one-hot)"."""
    if record is None:
        return ""
    texts = record.get("text")
    beside = [f"pictures in {record['images']}"] if "images" in record else []
    beside += [f"texts in {texts if isinstance(texts, str) else ' and '.join(texts)}"] if texts else []
    kinds: Mapping[str, Sequence[str]] = record.get("categories", {})
    told = [
        *beside,
        *(
            f"{name} ({names(kinds[name])}; {record['encoding']})" if name in kinds else name
            for name in record.get("inputs", ())
        ),
    ]
    return ", ".join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more" if len(told) > SHOWN else "")


def model(spec: str | None) -> str:
    """`file.py:factory` without the folders of the file; other specs are unchanged."""
    return (spec or "").rpartition("/")[2] if ".py:" in (spec or "") else spec or ""


def weights(origin: Record | None) -> str:
    if origin is None:
        return ""
    key = after(", ", origin["key"] or "")
    unused = after("; not used: ", names(origin["unused"] or ()))
    return f"{'averaged' if origin['average'] else 'plain'}{key}{unused}"


def units(units: Sequence[float | Sequence[float]] | None) -> str:
    if units is None:
        return ""
    each = [[unit] if isinstance(unit, float | int) else unit for unit in units]  # for several targets each is a list
    mean, std = (" and ".join(f"{number:g}" for number in numbers) for numbers in each)
    return f"mean {mean}, standard deviation {std}"


def plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


MEMBER_FACTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("built by", model),
    "output": ("they emit", plain),
    "preprocessing": ("their input", preprocessing),
    "units": ("standardized by", units),
    "variance": ("their variance", plain),
    "weights": ("weights", weights),
}


def made_from(record: Record) -> list[tuple[str, str]]:
    made = record.get("made_from")
    if made is None:
        return []
    calibration = made["calibration"]
    return [
        ("made from", f"weights {made['weights'][:HEX]}…"),
        ("calibrated", "no" if calibration is None else options(calibration)),
    ]


def reference(of: Record | None) -> str:
    """The number of calibration rows an exported file has thresholds from, and the options they serve."""
    if of is None:
        return ""
    return f"{of['rows']:,} calibration rows, for --coverage{' and --alpha' if of['labels'] else ''}"


def versions(of: Record) -> str:
    return ", ".join(f"{name} {of[name]}" for name in ("edistill", "torch", "timm") if name in of)


# --- words ------------------------------------------------------------------------------------------------------


def options(options: Record) -> str:
    said = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return ", ".join(f"{name} {plain(value)}" for name, value in said.items())


def split_of(document: str) -> str:
    """The split of a document in `evaluations/`, with "under shifts" if it is one of shifted rows."""
    name = document.removeprefix("evaluations/").removesuffix(".json")
    return f"{name.removeprefix('shifts/')} under shifts" if name.startswith("shifts/") else name


def names(names: Sequence[str]) -> str:
    """All names up to a dozen; of more, the first ones and the last."""
    return ", ".join(names) if len(names) <= 2 * FEW else f"{', '.join(names[:FEW])}, … {names[-1]}"


def few(names: Sequence[str]) -> str:
    """All names up to five; of more, the first two and the last."""
    return ", ".join(names) if len(names) < FEW else f"{names[0]}, {names[1]}, … {names[-1]}"


def listed(values: Sequence[Any] | Mapping[str, Any]) -> str:
    return ", ".join(map(str, values))


def numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def after(mark: str, text: str) -> str:
    return f"{mark}{text}" if text else ""


def ports(found: Sequence[Record]) -> str:
    """The inputs or outputs of a graph: "X float (N, 4)"."""
    told = []
    for port in found:
        shape = "?" if port["shape"] is None else ", ".join("N" if n is None else str(n) for n in port["shape"])
        told.append(f"{port['name']} {port['type']} ({shape})")
    return listed(told)


def opsets(record: Record) -> str:
    """The opset of a graph, "20", and those of other domains after their names."""
    return ", ".join(f"{domain} {version}".strip() for domain, version in record["opset"].items())


def size(record: Record) -> str:
    return megabytes(record["bytes"])


def in_batches(members: int, batches: Sequence[Sequence[str]]) -> str:
    """How many of a cache's members ran in batches with others of their architecture."""
    if not batches:
        return "one by one"
    together = sum(map(len, batches))
    return f"{together} of {members} in {'one batch' if len(batches) == 1 else f'{len(batches)} batches'}"
