"""Hostile files of every kind that a command opens: no code of theirs runs, nothing elsewhere changes, one message."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from commands import run
from report import Report
from tiny import make_folder
from victim import Victim

EVERY = (
    "cache-logits",
    "cache-logits --overwrite",
    "train",
    "train --overwrite",
    "evaluate",
    "evaluate --json",
    "calibrate",
    "export --onnx --safetensors",
    "predict data/test.npz",
    "inspect cache",
    "inspect teachers",
    "inspect runs/hydra-s0",
    "inspect data/test.npz",
    "inspect .",
    "verify cache",
)
DEEP = 100_000  # brackets within brackets
HUGE = 10**12
Attack = Callable[[Path, Path], None]  # a folder with everything made, and one outside that must stay as it is


def campaign(scratch: Path, every: int, seed: int) -> Report:
    """Make each hostile folder and run every `every`-th command in it, from that of the seed's number on: all of them
    over the rounds."""
    report = Report("hostile files")
    made = make_folder(scratch / "folder", members=2, rows={"train": 40, "validation": 24, "test": 10, "ood/noise": 7})
    for command in ("cache-logits", "train", "calibrate", "export --onnx --safetensors"):
        assert run(made, command).status == 0, command
    whole = scratch / "whole"
    shutil.copytree(made, whole)
    for number, (name, attack) in enumerate(attacks()):
        for position, command in enumerate(EVERY):
            if (number + position + seed) % every:
                continue
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(whole, made)
            victim = Victim(scratch / "victim")
            attack(made, victim.folder)
            outcome = run(made, command)
            told = f"{name}, {command}"
            if outcome.fault is not None:
                report.wrong(f"{told}: {outcome.fault}: {outcome.err[-900:].decode(errors='replace')}")
            for what in victim.harm():
                report.wrong(f"{told}: {what}")
            report.count("refused" if outcome.status == 2 else "passed")
            report.trial()
    return report


def attacks() -> Iterator[tuple[str, Attack]]:
    """Each with its name."""
    for where in ("absolute", "up"):
        for field in ("splits", "members", "records", "pushed"):
            yield f"{where} name in the manifest's {field}", _manifest_name(field, where)
    for target in ("records", "parts", "replay", "manifest.json", ".lock"):
        yield f"cache/{target} is a link that leads elsewhere", _link(f"cache/{target}")
    for target in (
        "export",
        "evaluations",
        "calibration.json",
        "student.safetensors",
        "checkpoint.safetensors",
        ".lock",
    ):
        yield f"a run's {target} is a link that leads elsewhere", _link(f"runs/hydra-s0/{target}")
    for suffix in ("pth", "pt", "bin", "pth.tar", "ckpt"):
        yield f"a pickle that runs code as .{suffix}", _pickled_member(suffix)
    for spec in ("os:system", "subprocess:call", "builtins:exec"):
        yield f"a member that is a run whose body is {spec}", _callable_run(spec, "teachers/run")
        yield f"a run whose body is {spec}", _callable_run(spec, "runs/hydra-s0")
    yield "a member that is a run with code of its own", _run_with_code
    yield "args.yaml that makes objects", _args_yaml("!!python/object/apply:os.system ['touch {ran}']")
    yield "args.yaml whose anchors explode", _args_yaml(_laughs())
    yield "deep args.yaml", _args_yaml("model: " + "[" * 20_000)
    for name in ("cache/manifest.json", "runs/hydra-s0/config.json", "runs/hydra-s0/calibration.json"):
        yield f"deep {name}", _written(name, b"[" * DEEP)
        yield f"deep tables in {name}", _written(name, b'{"a":' * DEEP)
        yield f"{name} is a list", _written(name, b"[]")
        yield f"{name} is text of no encoding", _written(name, b'{"a": "\xff\xfe"}')
        yield f"{name} is a folder", _folder(name)
        yield f"{name} is a pipe", pipe(name)
    for name in (
        "edistill.toml",
        "model.py",
        "data/train.npz",
        "data/test.npz",
        "teachers/member-0.safetensors",
        "cache/args.toml",
        "cache/records/train/member-0.v0.npy",
        "cache/replay/train.safetensors",
        "runs/hydra-s0/args.toml",
        "runs/hydra-s0/summary.csv",
        "runs/hydra-s0/student.safetensors",
        "runs/hydra-s0/checkpoint.safetensors",
        "runs/hydra-s0/export/model.onnx",
        "teachers/answers.npz",
    ):
        yield f"{name} is a pipe", pipe(name)
        yield f"{name} is a folder", _folder(name)
    yield "deep edistill.toml", _appended("edistill.toml", b"\n[more]\na = " + b"[" * DEEP)
    yield "edistill.toml of no encoding", _appended("edistill.toml", b"\n# \xff\xfe")
    for name in (
        "teachers/member-0.safetensors",
        "runs/hydra-s0/student.safetensors",
        "cache/replay/train.safetensors",
    ):
        yield f"{name} claims a header of {HUGE} bytes", _written(name, struct.pack("<Q", HUGE) + b"{}")
        yield f"{name} claims a tensor of {HUGE} numbers", _written(name, _huge_safetensors())
        yield f"{name} has a deep header", _written(name, struct.pack("<Q", DEEP) + b"[" * DEEP)
    for name in ("data/train.npz", "data/test.npz"):
        yield f"{name} claims {HUGE} rows", _written(name, _huge_npz())
        yield f"{name} holds pickled objects", _pickled_arrays(name)
        yield f"{name} unpacks to more than there is", _written(name, _bomb())
        yield f"{name} is not a zip", _written(name, b"PK\3\4 and no more")
        yield f"{name} has names that leave it", _written(name, _npz_with_names())
    yield f"a record claims {HUGE} rows", _written("cache/records/test/member-0.v0.npy", _huge_npy())
    yield "a record of pickled objects", _pickled_record
    for name in ("runs/hydra-s0/export/model.onnx",):
        yield "a graph with its weights in another file", _external_onnx
        yield "an empty graph", _written(name, b"")
        yield "a graph of zeros", _written(name, bytes(1000))
        yield "deep metadata of a graph", _onnx_metadata("edistill.classes", "[" * DEEP)
        for key in ("task", "classes", "kind", "shape", "preprocessing", "members", "version", "method"):
            yield f"{key} of a graph is a number", _onnx_metadata(f"edistill.{key}", "7")
            yield f"{key} of a graph is not JSON", _onnx_metadata(f"edistill.{key}", "{")
    for shown in ("\x1b[2J\x1b]0;owned\x07", "=cmd|' /C calc'!A0", "[bold red]x[/]", "a\nb", "\u202etxt"):
        yield f"a member called {shown!r}", _named_member(shown)
        yield f"a class called {shown!r}", _named_class(shown)
    yield "a member whose name is not UTF-8", _named_member(b"m\xff".decode("utf-8", "surrogateescape"))


# --- files in the place of others -------------------------------------------------------------------------------


def _written(name: str, content: bytes) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        (folder / name).write_bytes(content)

    return attack


def _appended(name: str, content: bytes) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(content)

    return attack


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _folder(name: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        _gone(folder / name)
        (folder / name).mkdir()

    return attack


def pipe(name: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        _gone(folder / name)
        os.mkfifo(folder / name)

    return attack


def _link(name: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        _gone(folder / name)
        (folder / name).symlink_to(victim / "precious" if "." in Path(name).name else victim)

    return attack


# --- the cache --------------------------------------------------------------------------------------------------


def _manifest_name(field: str, where: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        path = folder / "cache" / "manifest.json"
        record = json.loads(path.read_text())
        record.pop("sha256")
        name = str(victim) if where == "absolute" else os.path.relpath(victim, folder / "cache" / "records")
        if field == "splits":
            record["splits"][name] = record["splits"]["test"]
        elif field == "members":
            record["members"].append({**record["members"][0], "name": f"{name}/records/precious", "sha256": "0" * 64})
        elif field == "records":
            record["records"][f"{name}/records/precious/0"] = "0" * 64
        else:
            pushed = {"members": [["member-0", "0" * 64]], "shape": [1, 6, 6], "dtype": "uint8"}
            record["pushed"] = {f"{name}/0": pushed}
        checksum = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**record, "sha256": checksum}))
        # a member that is gone makes the next pass drop what it held
        for member in sorted((folder / "teachers").iterdir())[1:]:
            member.unlink()

    return attack


def _huge_npy() -> bytes:
    file = io.BytesIO()
    description = [("max", "<f4"), ("logits", "<f2", (3,))]
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": (HUGE,)})
    return file.getvalue()


def _pickled_record(folder: Path, victim: Path) -> None:
    np.save(folder / "cache/records/test/member-0.v0.npy", np.array([_Code(victim)], object), allow_pickle=True)


# --- code -------------------------------------------------------------------------------------------------------


class _Code:
    """Unpickled, it leaves a mark."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}/ran",)


def _pickled_member(suffix: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        (folder / "teachers" / f"evil.{suffix}").write_bytes(pickle.dumps({"state_dict": _Code(victim)}))

    return attack


def _callable_run(spec: str, place: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        run_folder = folder / place
        if not run_folder.exists():
            shutil.copytree(folder / "runs" / "hydra-s0", run_folder)
        config = json.loads((run_folder / "config.json").read_text())
        config.pop("sha256", None)
        config["edistill"] = "0.1.0"
        said = {"command": f"touch {victim}/ran"} if spec == "os:system" else {"args": ["touch", f"{victim}/ran"]}
        config["student"] |= {"model": spec, "kwargs": said}
        (run_folder / "config.json").write_text(json.dumps(config))

    return attack


def _run_with_code(folder: Path, victim: Path) -> None:
    run_folder = folder / "teachers" / "run"
    shutil.copytree(folder / "runs" / "hydra-s0", run_folder)
    (run_folder / "code.py").write_text(f"from pathlib import Path\nPath({str(victim / 'ran')!r}).touch()\n")
    config = json.loads((run_folder / "config.json").read_text())
    config.pop("sha256", None)
    config["edistill"] = "0.1.0"
    config["student"]["model"] = "code.py:make_body"
    (run_folder / "config.json").write_text(json.dumps(config))


def _args_yaml(text: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        run_folder = folder / "teachers" / "timm-run"
        run_folder.mkdir()
        shutil.copy(folder / "teachers" / "member-0.safetensors", run_folder / "model_best.safetensors")
        (run_folder / "args.yaml").write_text(text.replace("{ran}", str(victim / "ran")))

    return attack


def _laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join([*lines, "model: *a11"])


# --- sizes ------------------------------------------------------------------------------------------------------


def _huge_safetensors() -> bytes:
    header = json.dumps({"2.weight": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}).encode()
    return struct.pack("<Q", len(header)) + header


def _huge_npz() -> bytes:
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (HUGE, 6, 6)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", array.getvalue())
    return file.getvalue()


def _bomb() -> bytes:
    """A few megabytes that unpack to sixteen thousand times as many rows as there should be memory for."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (40_000_000_000,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", array.getvalue() + bytes(1 << 20))
    return file.getvalue()


def _npz_with_names() -> bytes:
    array = io.BytesIO()
    np.save(array, np.zeros((40, 6, 6), np.uint8))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("x.npy", "../../up.npy", "/absolute.npy", "\x1b[2J.npy"):
            archive.writestr(name, array.getvalue())
    return file.getvalue()


def _pickled_arrays(name: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        np.savez(folder / name, x=np.array([_Code(victim)] * 3, object), y=np.zeros(3, np.int64))

    return attack


# --- graphs -----------------------------------------------------------------------------------------------------


def _external_onnx(folder: Path, victim: Path) -> None:
    import onnx

    path = folder / "runs/hydra-s0/export/model.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", os.path.relpath(victim / "precious", path.parent)
    path.write_bytes(model.SerializeToString())


def _onnx_metadata(key: str, value: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        import onnx

        path = folder / "runs/hydra-s0/export/model.onnx"
        model = onnx.load(path)
        said = {entry.key: entry.value for entry in model.metadata_props if entry.key != "edistill.sha256"}
        onnx.helper.set_model_props(model, {**said, "edistill.version": '"0.1.0"', key: value})
        path.write_bytes(model.SerializeToString())

    return attack


# --- names ------------------------------------------------------------------------------------------------------


def _named_member(name: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        other = (folder / "teachers" / "member-1.safetensors").read_bytes()
        (folder / "teachers" / f"{name.replace('/', '_')}.safetensors").write_bytes(other[:-1] + b"\x3f")

    return attack


def _named_class(name: str) -> Attack:
    def attack(folder: Path, victim: Path) -> None:
        for file in (folder / "data").rglob("*.npz"):
            with np.load(file) as split:
                arrays = dict(split)
            np.savez(file, **arrays, classes=np.array([name, "b", "c"]))
        shutil.rmtree(folder / "cache")
        assert run(folder, "cache-logits").status in (0, 2)

    return attack
