"""The names in the folders of runs and chains, and the commands that make their files again.

RUN/args.toml                   the settings that made it
RUN/config.json                 its student's architecture and provenance
RUN/student.safetensors         the weights; their presence marks a finished run
RUN/checkpoint.safetensors      the state of its training
RUN/summary.csv                 a row per epoch
RUN/logs/                       written by --log
RUN/calibration.json            the correction of its predictions
RUN/evaluations/                documents, and the figures of each row
RUN/export/                     exported files

ensemble/export/                beside the folder of runs: the members themselves as one file; for a trial,
                                ensemble-limit-N/export/

CHAIN/args.toml                 the settings, including train.generations
CHAIN/generation-1 … K          each a run like any other
CHAIN/caches/generation-1 …     the outputs of each generation but the last, which teach the next
CHAIN/evaluations/              as in a run
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import ENSEMBLE
from ensemble_distill.runtime.files import read_whole
from ensemble_distill.runtime.words import shell
from ensemble_distill.settings.limit import mark
from ensemble_distill.settings.loading import ARGS as ARGS
from ensemble_distill.settings.loading import EXPORTS as EXPORTS

CONFIG = "config.json"
WEIGHTS = "student.safetensors"
CHECKPOINT = "checkpoint.safetensors"
SUMMARY = "summary.csv"
CALIBRATION = "calibration.json"
EVALUATIONS = "evaluations"
LOGS = "logs"
CACHES = "caches"
FILES = (ARGS, CONFIG, WEIGHTS, CHECKPOINT, SUMMARY, CALIBRATION, EVALUATIONS, EXPORTS, LOGS)  # in a run
CHAIN_FILES = (ARGS, CACHES, EVALUATIONS)  # in a chain, beside its generations

# the exported files, and the flags that make them
ONNX, SAFETENSORS = "model.onnx", "model.safetensors"
PROGRAM = "model.pt2"
MERGED = "merged"  # a folder that timm loads
FLOAT16, INT8 = "model-fp16.onnx", "model-int8.onnx"
RAW = {ONNX: "model-uint8.onnx", FLOAT16: "model-fp16-uint8.onnx", INT8: "model-int8-uint8.onnx"}  # for raw pixels
FORMATS = {
    ONNX: "--onnx",
    FLOAT16: "--fp16",
    INT8: "--int8",
    RAW[ONNX]: "--uint8-input",
    RAW[FLOAT16]: "--fp16 --uint8-input",
    RAW[INT8]: "--int8 --uint8-input",
    SAFETENSORS: "--safetensors",
    PROGRAM: "--program",
    MERGED: "--merge-heads",
}
EXPORTED = f"{EXPORTS}/{ONNX}"  # in a run: the file that stands for it

MADE_FROM = "made_from"  # key in documents and exported files of the students they were made from


def generation_name(generation: int | str) -> str:
    """The name of a generation, counted from 1, in all folders and documents; `*` matches all."""
    return f"generation-{generation}"


def below(runs: Path, name: str) -> list[Path]:
    """The named file of every run in a folder of runs, generations of chains included."""
    return [*runs.glob(f"*/{name}"), *runs.glob(f"*/{generation_name('*')}/{name}")]


def exported_in(files: Iterable[str]) -> list[str]:
    """The names of the exported files among a run's files; a folder counts if it contains any file."""
    there = {Path(name).parts[1] for name in files if name.startswith(f"{EXPORTS}/")}
    return [name for name in FORMATS if name in there]


def bytes_of(export: Path) -> int:
    """The size in bytes of an exported file, or of the files in an exported folder."""
    return sum(file.stat().st_size for file in (export.iterdir() if export.is_dir() else [export]))


def flags_of(names: Iterable[str]) -> str:
    """The flags that export files of these names, each once."""
    asked = set(names)
    return " ".join(dict.fromkeys(flag for name, flags in FORMATS.items() if name in asked for flag in flags.split()))


def code_at(folder: Path, file: str) -> Path:
    """The file of code that a record in `folder` names by its path from there, absolute.

    That path was written from the folder's name, of which links may be a part (a linked `runs`), so it counts from that
    name. If a link has led to the folder since, it counts from where the folder is.
    """
    named, found = Path(os.path.abspath(folder / file)), (folder / file).resolve()  # noqa: PTH100
    return found if found.is_file() and not named.is_file() else named


def go_on(run: Path) -> str:
    """The command that finishes an interrupted training by its own settings, whatever the current ones are."""
    return f"edistill train -c {shell(run / ARGS)}"


def train_again(run: Path) -> str:
    """The command that makes a run again from its own settings, whatever the current ones are."""
    return f"{go_on(run)} --overwrite"


def export_again(export: Path) -> str:
    """The command that makes an exported file again: from the run it lies in, from the ensemble, or from the latest
    run."""
    if is_ensemble_export(export):
        _, _, limit = export.absolute().parent.parent.name.partition(mark(""))
        return f"edistill export --ensemble {FORMATS[ONNX]}{f' --limit {limit}' if limit else ''}"
    run = f"{shell(outer(export))} " if export.absolute().parent.name == EXPORTS else ""
    of_kind = {Path(name).suffix: flag for name, flag in FORMATS.items() if name in (SAFETENSORS, PROGRAM)}
    return f"edistill export {run}{FORMATS.get(export.name, of_kind.get(export.suffix, FORMATS[ONNX]))}"


def ensemble_folder(runs: Path, limit: int | None) -> Path:
    """The folder that the members are exported to, beside the folder of runs; a trial has its own."""
    return runs.parent / (ENSEMBLE if limit is None else f"{ENSEMBLE}{mark(limit)}")


def is_ensemble_export(export: Path) -> bool:
    """Whether an exported file holds the members, judged by its folder."""
    folder = export.absolute().parent
    name, of_trial, limit = folder.parent.name.partition(mark(""))
    named = name == ENSEMBLE and (not of_trial or limit.isdecimal())
    return folder.name == EXPORTS and named and not (folder.parent / CONFIG).is_file()


def run_of(export: Path) -> Path | None:
    """The run whose export folder contains the file; None if there is none."""
    folder = export.absolute().parent
    return outer(export) if folder.name == EXPORTS and (folder.parent / WEIGHTS).is_file() else None


def outer(file: Path) -> Path:
    """The folder around the one that holds a file, also for a file of the working folder."""
    return file.parent.parent if len(file.parts) > 1 else Path("..")


def content_of(path: Path) -> bytes | None:
    """The bytes of a file; None if it does not exist. Raises EdistillError if it is not a regular file, or too
    large."""
    try:
        return read_whole(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise EdistillError(f"{path} is damaged ({error}). Restore it, or move it away.") from None
