"""An exported torch program, `.pt2`, read as data and run operator by operator; none of its code is executed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.runs.exports import PROGRAM_OUTPUTS, ForeignError, damaged_export, program_metadata
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.serving.aten import Program, UnknownPartError, dtype_of
from ensemble_distill.serving.by_torch import ByTorch
from ensemble_distill.serving.card import Card

WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
CONFIGS = {WEIGHTS: "_weights_config.json", CONSTANTS: "_constants_config.json"}


class ProgramFile(ByTorch):
    """A program that edistill exported."""

    def __init__(self, path: Path, trust: Trust = NOTHING) -> None:
        """Open a program.

        Raises:
            EdistillError: edistill did not write it, it is damaged, or parts of it cannot be read as data.
        """
        self.path, self.trust = path, trust
        try:
            said = program_metadata(path)
        except ForeignError as error:
            raise EdistillError(
                f"{path} was not written by edistill export: {error}, so its preprocessing and classes are unknown. "
                "Give a file that edistill export --program wrote; a program can be a member (teachers.path)."
            ) from None
        except ValueError as error:
            raise damaged_export(path, error) from None
        self.card = Card.from_metadata(said, path)
        try:
            self._names: tuple[str, ...] = tuple(parse_json(said[PROGRAM_OUTPUTS]))
            self._program = _read(path)
        except UnknownPartError as error:
            raise EdistillError(
                f"{path} has {error}, which is not read as data, and nothing else of a program is run. Use the ONNX "
                f"file or the weights of the run instead: {export_again(path.with_name('model.onnx'))} --safetensors."
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise damaged_export(path, quoted(error)) from None

    def module(self, trust: Trust = NOTHING) -> nn.Module:
        return self._program.eval()

    def said(self, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, module(x), strict=True))


def _read(path: Path) -> Program:
    """Read the program of an archive; raises as `Program` does, and if a file of the archive is missing or invalid."""
    with ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        models = [name for name in names if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            raise UnknownPartError(f"{len(models)} graphs in a form of torch 2.8 and later")
        graph = parse_json(archive.read(names[models[0]]))
        model = Path(models[0]).stem
        tensors = {**_tensors(archive, names, WEIGHTS, model), **_tensors(archive, names, CONSTANTS, model)}
    return Program(graph["graph_module"], tensors)


def _tensors(archive: ZipFile, names: Mapping[str, str], folder: str, model: str) -> dict[str, Tensor]:
    """Tensors by name, each made from the bytes of one file; names with the same file and layout share a tensor."""
    listed = f"{folder}{model}{CONFIGS[folder]}"
    if listed not in names:
        raise UnknownPartError(f"no {listed}, as torch before 2.9 wrote none")
    config = parse_json(archive.read(names[listed]))["config"]
    made: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, told in config.items():
        meta = told["tensor_meta"]
        if told["use_pickle"] or meta is None:
            raise UnknownPartError(f"a pickled {name}")
        key = f"{told['path_name']} {meta}"
        if key not in made:
            made[key] = _tensor(archive.read(names[f"{folder}{told['path_name']}"]), meta)
        found[name] = made[key]
    return found


def _tensor(content: bytes, meta: Mapping[str, Any]) -> Tensor:
    """The tensor that `meta` describes, in the bytes of a storage; raises ValueError if there are too few of them."""
    dtype, sizes = dtype_of(meta["dtype"]), _whole(meta["sizes"])
    if not content:
        return torch.empty(sizes, dtype=dtype) if math.prod(sizes) == 0 else _refuse_short(sizes)
    storage = torch.frombuffer(bytearray(content), dtype=dtype)
    strides, start = _whole(meta["strides"]), _whole([meta["storage_offset"]])[0]
    if start + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True) if size) >= len(storage):
        return _refuse_short(sizes)
    return storage.as_strided(sizes, strides, start)


def _whole(numbers: Any) -> list[int]:
    return [int(one["as_int"]) for one in numbers]


def _refuse_short(sizes: list[int]) -> Tensor:
    raise ValueError(f"a tensor of {sizes} has fewer bytes than that")
