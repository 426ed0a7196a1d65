"""A member that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import Member, Several, named_in
from ensemble_distill.students.fields import apart, named
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import ROUNDING, Inputs, Rows
from ensemble_distill.teachers.graphs import Port
from ensemble_distill.teachers.remarked import Remarked

DTYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
}
QUIET = 3  # onnxruntime's log level for errors


@dataclass(frozen=True)
class Ask:
    """How to run a graph.

    Attributes:
        path: its file.
        entries: its input; for texts one for each field, and for rows of several arrays one for each, in their order.
        outputs: the names of the outputs that form the answer, side by side.
        labels: the keys in order if the answer is a table for each row; None for a matrix.
    """

    path: Path
    entries: tuple[Port, ...]
    outputs: tuple[str, ...]
    labels: tuple[int | str, ...] | None


Given = dict[str, NDArray[Any]]  # rows by input name


class Session:
    """See `Answering`. It runs on the CPU, whatever device the networks use.

    Args:
        size: of its files, in bytes.

    Raises:
        EdistillError: onnxruntime cannot load the graph.
    """

    module, fineness = None, ROUNDING

    def __init__(self, task: type[Task], member: Member, ask: Ask, size: int = 0) -> None:
        self.task, self.member, self._ask, self.size = task, member, ask, size
        self.remarked = Remarked(task, member)
        self._session = _session(ask.path)

    @property
    def wants(self) -> Inputs:
        return Inputs(self.member.preprocessing)

    @property
    def remark(self) -> str | None:
        return self.remarked.remark

    def meets(self, split: str, rows: Rows) -> None:
        """Does nothing: a graph answers any rows."""

    def to(self, device: torch.device) -> None:
        """Does nothing: it stays on the CPU."""

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        assert inputs is not None  # requested by `wants`
        where = f"at row {rows[0]} of {split}"
        fields = self._fields(inputs)
        x = {
            port.name: self._fitted(one.cpu().numpy(), port, where)
            for port, one in zip(self._ask.entries, fields, strict=True)
        }
        return self.remarked.answers(self._raw(x, where), split, rows)

    def _fields(self, inputs: Tensor) -> Sequence[Tensor]:
        """The rows for each input; texts are padded to the longest, or to the length that the graph fixes."""
        encoding = named_in(self.member.preprocessing)
        if encoding is None:
            return [inputs]
        if isinstance(encoding, Several):
            return list(apart(inputs, encoding).values())
        free = all(port.shape is None or port.shape[-1] is None for port in self._ask.entries)
        return list(named(inputs, encoding).values()) if free else inputs.unbind(1)

    def _fitted(self, x: NDArray[Any], entry: Port, where: str) -> NDArray[Any]:
        """Rows in the shape and type that the graph takes; raises EdistillError if their shape does not match."""
        wanted = entry.shape
        if wanted is not None and len(wanted) == 2 and x.ndim > 2:
            x = self.remarked.flat(x)
        if wanted is not None and (
            len(wanted) != x.ndim or any(w not in (None, n) for w, n in zip(wanted[1:], x.shape[1:], strict=True))
        ):
            raise EdistillError(
                f"Member {self.member.name} takes {entry.told}, and the data gives {x.shape[1:]} a row "
                f"{where}. Give the data it was trained on, or remove it from teachers.path."
            )
        return np.ascontiguousarray(x, dtype=DTYPES[entry.kind])

    def _raw(self, given: Given, where: str) -> NDArray[Any]:
        """The output (B, ·); a graph of a fixed batch size runs batches filled up with copies of their last row."""
        first = self._ask.entries[0]
        fixed, rows = first.shape[0] if first.shape else None, len(given[first.name])
        if fixed is None:
            return self._run(given, where)
        parts = []
        for start in range(0, rows, fixed):
            here = {name: x[start : start + fixed] for name, x in given.items()}
            count = len(here[first.name])
            filled = {name: np.concatenate([x, np.repeat(x[-1:], fixed - count, axis=0)]) for name, x in here.items()}
            parts.append(self._run(filled, where)[:count])
        return np.concatenate(parts)

    def _run(self, given: Given, where: str) -> NDArray[Any]:
        x = given[self._ask.entries[0].name]
        try:
            found = self._session.run(list(self._ask.outputs), given)
        except Exception as error:  # onnxruntime's errors have no common class
            raise EdistillError(
                f"Member {self.member.name} fails {where} on an input of shape {x.shape}: {first_line(error)}. Check "
                "teachers.preprocessing and the data against what it was trained on."
            ) from error
        return np.concatenate([self._matrix(one, len(x), where) for one in found], axis=1)

    def _matrix(self, found: Any, rows: int, where: str) -> NDArray[Any]:
        """One output as a matrix (B, ·), with the columns of a table in the order of its labels."""
        if self._ask.labels is not None:
            try:
                found = np.array([[row[label] for label in self._ask.labels] for row in found], np.float64)
            except (KeyError, TypeError) as error:
                raise EdistillError(
                    f"Member {self.member.name} gives no number for class {first_line(error)} {where}. Convert it with "
                    "zipmap=False."
                ) from None
        array = np.asarray(found)
        return array.reshape(rows, -1) if array.ndim == 1 and len(array) == rows else array


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise EdistillError(
            f"onnxruntime cannot load {path}: {first_line(error)}. Export it again, for a release of ONNX and "
            f"operators that onnxruntime {onnxruntime.__version__} has."
        ) from None
