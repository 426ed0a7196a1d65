"""What a run's folder and a chain's are made of: every name in them, and the commands that make their files anew.

RUN/args.toml                   the settings it was made with
RUN/config.json                 what its student is, and where it came from
RUN/student.safetensors         the weights; their presence is what finishes a run
RUN/checkpoint.safetensors      the state of its training
RUN/summary.csv                 a row an epoch
RUN/logs/                       what --log writes
RUN/calibration.json            what its predictions are corrected by
RUN/evaluations/                documents, and the figures of each row
RUN/export/                     exported files

ensemble/export/                beside the folder of runs: the members themselves as one file; of a trial,
                                ensemble-limit-N/export/

CHAIN/args.toml                 the settings, train.generations among them
CHAIN/generation-1 … K          each a run like any other
CHAIN/caches/generation-1 …     what each but the last said, to teach the next
CHAIN/evaluations/              as a run's
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import ENSEMBLE
from ensemble_distill.runtime.files import read_whole
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
FILES = (ARGS, CONFIG, WEIGHTS, CHECKPOINT, SUMMARY, CALIBRATION, EVALUATIONS, EXPORTS, LOGS)  # a run's own
CHAIN_FILES = (ARGS, CACHES, EVALUATIONS)  # a chain's own, beside its generations

# the exported files, and what asks for them
ONNX, SAFETENSORS = "model.onnx", "model.safetensors"
PROGRAM = "model.pt2"
MERGED = "merged"  # a folder that timm loads
FLOAT16, INT8 = "model-fp16.onnx", "model-int8.onnx"
RAW = {ONNX: "model-uint8.onnx", FLOAT16: "model-fp16-uint8.onnx", INT8: "model-int8-uint8.onnx"}  # of raw pixels
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
EXPORTED = f"{EXPORTS}/{ONNX}"  # in a run, which stands for it

MADE_FROM = "made_from"  # under which documents and exported files say of which students they are


def generation_name(generation: int | str) -> str:
    """What the generation, counted from 1, is called wherever it stands; `*` stands for all."""
    return f"generation-{generation}"


def below(runs: Path, name: str) -> list[Path]:
    """That file of every run in a folder of runs, those of chains among them."""
    return [*runs.glob(f"*/{name}"), *runs.glob(f"*/{generation_name('*')}/{name}")]


def exported_in(files: Iterable[str]) -> list[str]:
    """Which exported files are among those of a run, by their names; a folder is, where anything in it is."""
    there = {Path(name).parts[1] for name in files if name.startswith(f"{EXPORTS}/")}
    return [name for name in FORMATS if name in there]


def bytes_of(export: Path) -> int:
    """The size of an exported file, or of a folder of them."""
    return sum(file.stat().st_size for file in (export.iterdir() if export.is_dir() else [export]))


def flags_of(names: Iterable[str]) -> str:
    """What asks for exported files of these names, each flag once."""
    asked = set(names)
    return " ".join(dict.fromkeys(flag for name, flags in FORMATS.items() if name in asked for flag in flags.split()))


def train_again(run: Path) -> str:
    """The command that makes a run anew from its own settings, whatever else is configured."""
    return f"edistill train -c {run / ARGS} --overwrite"


def export_again(export: Path) -> str:
    """The command that makes an exported file anew: of the run it stands in, of the ensemble, or of the latest run."""
    if is_ensemble_export(export):
        _, _, limit = export.absolute().parent.parent.name.partition(mark(""))
        return f"edistill export --ensemble {FORMATS[ONNX]}{f' --limit {limit}' if limit else ''}"
    run = f"{export.parent.parent} " if export.parent.name == EXPORTS else ""
    of_kind = {Path(name).suffix: flag for name, flag in FORMATS.items() if name in (SAFETENSORS, PROGRAM)}
    return f"edistill export {run}{FORMATS.get(export.name, of_kind.get(export.suffix, FORMATS[ONNX]))}"


def ensemble_folder(runs: Path, limit: int | None) -> Path:
    """Where the members of a folder with these runs are exported to; those of a trial stand apart."""
    return runs.parent / (ENSEMBLE if limit is None else f"{ENSEMBLE}{mark(limit)}")


def is_ensemble_export(export: Path) -> bool:
    """Whether an exported file is that of the members, by where it stands."""
    folder = export.absolute().parent
    name, of_trial, limit = folder.parent.name.partition(mark(""))
    named = name == ENSEMBLE and (not of_trial or limit.isdecimal())
    return folder.name == EXPORTS and named and not (folder.parent / CONFIG).is_file()


def run_of(export: Path) -> Path | None:
    """The run in whose folder an exported file stands; None where it stands elsewhere."""
    folder = export.absolute().parent
    return export.parent.parent if folder.name == EXPORTS and (folder.parent / WEIGHTS).is_file() else None


def content_of(path: Path) -> bytes | None:
    """None where there is no such file. Raises EdistillError where what is there is none of ours, or too large."""
    try:
        return read_whole(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise EdistillError(f"{path} is damaged ({error}). Restore it, or move it away.") from None
