"""A member that is a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import ROUNDING, Inputs, Rows


class Network:
    """See `Answering`.

    Args:
        task: the task whose answers the module gives.
        module: in eval mode; maps x (B, …) to its raw output.
    """

    def __init__(self, task: type[Task], member: Member, module: nn.Module) -> None:
        self.task, self.member, self.module = task, member, module
        self.fineness = ROUNDING

    @property
    def wants(self) -> Inputs:
        return Inputs(self.member.preprocessing)

    @property
    def remark(self) -> str | None:
        return None

    def meets(self, split: str, rows: Rows) -> None:
        """Does nothing: a network answers any rows."""

    def to(self, device: torch.device) -> None:
        self.module.to(device)

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        assert inputs is not None  # requested by `wants`
        return self.said(inputs, split, rows, f"at row {rows[0]} of {split}")

    def said(self, x: Tensor, split: str, rows: Sequence[int], where: str) -> NDArray[np.float32]:
        """The answers (B, W) to inputs `x` of some rows; `where` locates the rows in errors."""
        return self.checked(self.joined(self.returned(x, where), len(rows), where), split, rows)

    def returned(self, x: Tensor, where: str) -> Any:
        """The module's raw return value; raises EdistillError if it fails, with `where` locating the rows.

        The module gets a copy of `x`: it may work in place, and other members are shown the same tensor.
        """
        try:
            with torch.inference_mode():
                return self.module(x.clone())
        except torch.OutOfMemoryError as error:
            raise EdistillError(
                f"Member {self.member.name} runs out of memory {where} with {len(x)} rows at once. Lower "
                "cache.batch-size."
            ) from error
        except Exception as error:  # the module is anyone's code
            raise EdistillError(
                f"Member {self.member.name} fails {where} on an input of shape {tuple(x.shape)}: {error}. Check "
                "teachers.preprocessing and teachers.model-kwargs against how it was trained."
            ) from error

    def joined(self, returned: Any, rows: int, where: str) -> Tensor:
        """The raw return value as one tensor (B, ·), copied since the module may reuse its buffer.

        Raises:
            EdistillError: it is not an output of the task for this number of rows, or not floating-point.
        """
        values = self.task.joined(returned, rows, self.member)
        if not values.is_floating_point():
            raise EdistillError(
                f"Member {self.member.name} returns {str(values.dtype).removeprefix('torch.')} numbers {where}, and "
                f"{self.member.output} are real. Return floats (teachers.model)."
            )
        return values.clone()

    def checked(self, raw: Tensor, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """Raw output (B, ·) in the cache's format; raises EdistillError if it is not an answer of the task."""
        self.fineness = max(ROUNDING, 2 * torch.finfo(raw.dtype).eps)
        return self.task.answers(raw, self.member, split, rows)
