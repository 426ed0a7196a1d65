"""A program of torch: an exported one (.pt2), or a TorchScript archive (.pt). It needs no Python code of the teacher.

Neither is data alone. `torch.export.load` unpickles objects in the file and evaluates shape expressions as Python;
torch's documentation says never to load a file from an untrusted source. A TorchScript archive is code that runs as it
is loaded, and its operators may write files. Both therefore need `--trust-checkpoints`.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import Member
from ensemble_distill.students.fields import shown
from ensemble_distill.teachers.names import is_weights_file, member_name
from ensemble_distill.teachers.preprocessing import from_settings, settled
from ensemble_distill.teachers.several import several_of
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.weights import is_torchscript
from ensemble_distill.teachers.whole_files import file_digest, refuse_changed

EXPORTED = ".pt2"
WHY = {
    True: "torch.export.load unpickles objects in it, and evaluates texts in it as Python",
    False: "a TorchScript archive is code that runs as it is loaded, and may write files",
}


class Batched(nn.Module):
    """Runs a program of a fixed batch size in batches of that size, filled up with copies of the last row."""

    def __init__(self, own: nn.Module, rows: int) -> None:
        super().__init__()
        self.own, self.rows = own, rows

    def forward(self, *arrays: Tensor, **named: Tensor) -> Tensor:
        rows, parts = len((*arrays, *named.values())[0]), []
        for start in range(0, rows, self.rows):
            here = [self._filled(x, start) for x in arrays]
            by_name = {name: self._filled(x, start) for name, x in named.items()}
            parts.append(self.own(*here, **by_name)[: rows - start])
        return torch.cat(parts)

    def _filled(self, x: Tensor, start: int) -> Tensor:
        here = x[start : start + self.rows]
        return torch.cat([here, here[-1:].expand(self.rows - len(here), *here.shape[1:])])


class Script(nn.Module):
    """Wraps a TorchScript archive as an ordinary module, since a script module refuses `requires_grad_`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.own = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def forward(self, *arrays: Tensor, **named: Tensor) -> Any:
        return self.own(*arrays, **named)


def claims(path: Path) -> bool:
    if path.name.lower().endswith(EXPORTED):
        return path.is_file()
    return is_weights_file(path) and path.is_file() and is_torchscript(path)


def load(path: Path, context: Context) -> Teacher:
    """Load a member; raises EdistillError unless checkpoints are trusted."""
    name, given = member_name(path), from_settings(context.settings.preprocessing)
    if not context.trust:
        raise EdistillError(
            f"{path} is a program, and loading it can run any code: {WHY[_is_exported(path)]}. If you trust where it "
            "comes from, pass --trust-checkpoints. Otherwise export it to ONNX, which is data alone, or give its "
            "weights and teachers.model."
        )
    member = Member(
        name=name,
        sha256=file_digest(path),
        **context.stated,
        class_order=context.order(name),
        preprocessing=several_of(name, context) or (settled(name, given) if given else None),
        model=path.name,
    )
    return Teacher(member, partial(_built, member, path), Origin(path.name))


def _is_exported(path: Path) -> bool:
    return path.name.lower().endswith(EXPORTED)


def _built(member: Member, path: Path) -> nn.Module:
    return shown(_build(member, path), member.preprocessing)


def _build(member: Member, path: Path) -> nn.Module:
    refuse_changed(path, member.sha256, file_digest(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript's age and files of other releases
            module = _exported(path) if _is_exported(path) else Script(path)
    except Exception as error:  # a damaged archive fails in many ways
        raise EdistillError(
            f"{path} is not a program that torch {torch.__version__} loads: {first_line(error)}. Copy it again, or "
            "export it again with this release."
        ) from None
    return module.requires_grad_(False)


def _exported(path: Path) -> nn.Module:
    program = torch.export.load(path)
    module: nn.Module = program.module()
    inputs = set(program.graph_signature.user_inputs)
    entries = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    shape: Any = getattr(entries[0].meta.get("val"), "shape", ()) if entries else ()
    return Batched(module, shape[0]) if shape and isinstance(shape[0], int) else module
