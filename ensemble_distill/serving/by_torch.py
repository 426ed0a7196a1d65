"""Exported students that torch runs."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.serving.batching import rows_at_once
from ensemble_distill.serving.exported_file import ExportedFile, Outputs
from ensemble_distill.students.fields import nothing


class ByTorch(ExportedFile):
    """Subclasses define the module and its named outputs; the module is built at first use."""

    runtime = "torch"
    trust: Trust = NOTHING

    @abstractmethod
    def said(self, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """The named outputs of rows x (B, ...)."""

    @cached_property
    def own(self) -> nn.Module:
        """The module that `run` calls."""
        module: nn.Module = self.module(self.trust)
        return module

    def run(self, x: NDArray[Any]) -> Outputs:
        return self.checked(self._numbers(torch.from_numpy(x)), len(x))

    @torch.no_grad()
    def _numbers(self, x: Tensor) -> dict[str, NDArray[np.float32]]:
        try:
            return {name: values.float().numpy() for name, values in self.said(self.own, x).items()}
        except EdistillError:
            raise
        except Exception as error:  # a foreign graph, or ids beyond the embedding table, can fail in many ways
            mend = f"Export the run again: {export_again(self.path)}."
            if self.card.ids:
                mend = f"Their largest id is {x.max()}: give ids of the vocabulary that the student was trained with."
            raise EdistillError(
                f"{self.path} fails on {len(x)} rows of shape {tuple(x.shape[1:])}: {quoted(error)}. {mend}"
            ) from None

    @cached_property
    def _one(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs of one empty row."""
        found = self._numbers(nothing(1, self.card.shape, self.card.ids))
        return {name: values.shape for name, values in found.items()}

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._one)

    @property
    def heads(self) -> int:
        return next((shape[1] for name, shape in self._one.items() if name.startswith("head_")), 1)

    @property
    def at_once(self) -> int:
        taken = ((1, *self.card.shape), 8 if self.card.ids else 4)
        return rows_at_once([taken, *((shape, 4) for shape in self._one.values())], longest=max(self.card.shape))
