"""Members of one architecture answer in one batch: their weights are stacked, and `vmap` runs them.

That saves the overhead of each operation, of checks and of encoding per member, and gives several processor cores whole
members to work on. To answer, check and encode a batch of 256 rows takes, in milliseconds on one core:

| members | one by one | together |
|---|---|---|
| 16 of 8-16-10 | 2.2 | 1.2 |
| 16 of 64-64-64-10 | 3.4 | 2.3 |
| 16 of 64-256-256-10 | 11.6 | 9.8 |
| 16 of 784-200-200-10 | 25.9 | 21.1 |
| 16 of 1024-1024-10 | 81.9 | 75.8 |
| 8 of 64-64-64-10 | 2.0 | 1.6 |
| 4 of 64-64-64-10 | .94 | .95 |
| 16 of two convolutions, 8 and 16 channels, 28 × 28 pixels | 256 | 793 |

On two cores, sixteen small members take half the time (examples/benchmarks/together.py). `FEWEST`, `MOST`, `LARGEST`
and the exclusion of convolutions follow from these numbers. They are a fixed rule rather than a timing of each pass:
the last bits of an answer depend on how it is computed, and a pass must end with the same bytes whatever else the
machine does, and whichever of several processes computes a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.per_head import architecture
from ensemble_distill.teachers.answering import Answering, Inputs
from ensemble_distill.teachers.network import Network
from ensemble_distill.teachers.streamed import Streamed, opened

FEWEST, MOST = 8, 16  # members in a batch; the numbers of more do not fit into the processor's caches
LARGEST = 2**18  # numbers in a member's largest tensor; beyond it little is gained
APART = 1e-4  # tolerance between a batch and its members, as a share of a member's largest number


class Together:
    """Several members that run as one batch.

    Args:
        members: of one architecture, on the device where they answer; see `together`.

    Raises:
        RuntimeError: their tensors cannot be stacked.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        self.members = tuple(members)
        stacked = stack_module_state([network.module for network in members])
        self._state = [{name: tensor.detach() for name, tensor in tensors.items()} for tensors in stacked]
        self._module = members[0].module
        self._run: Callable[..., Any] = torch.vmap(self._one, in_dims=(0, 0, None))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(network.member.name for network in self.members)

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor) -> NDArray[np.float32] | None:
        """The answers of each member to some rows, (M, B, W); see `Answering.answers`.

        None if the batch fails or its output is not an answer: a member asked alone then raises the error.
        """
        first, count = self.members[0], len(self.members) * len(rows)
        try:
            with torch.inference_mode():
                returned = self._run(*self._state, inputs.clone())
            raw = first.joined(_flat(returned), count, f"at row {rows[0]} of {split}")
            said = first.checked(raw, split, [*rows] * len(self.members))
        except Exception:  # a member is anyone's code, not written for vmap
            return None
        return said.reshape(len(self.members), len(rows), *said.shape[1:])

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(self._module, (parameters, buffers), (x,))


def together(
    asked: Sequence[Answering],
    shown: Callable[[Inputs], Tensor],
    noted: Sequence[Sequence[str]] = (),
    settled: Collection[str] = (),
) -> Iterator[Together]:
    """Yield the batches of members; members in no batch are asked one by one.

    Args:
        asked: the members.
        shown: gives some rows (B, …) as members want them, to compare a batch with its members; called only for
            members that could be a batch.
        noted: names of the members of each batch that the pass began with; these batches are kept.
        settled: names of members that stay as they were, in a noted batch or alone.
    """
    named = {one.member.name: one for one in asked}
    groups = [[named[name] for name in names if name in named] for names in noted]
    groups += _alike([one for one in asked if one.member.name not in settled])
    for group in groups:
        if len(group) > 1 and (batch := _agreeing(group, shown)) is not None:
            yield batch
            del batch  # before the next one is made


def _alike(asked: Sequence[Answering]) -> list[list[Answering]]:
    """Group members that can share a batch, `MOST` at a time; a group of fewer than `FEWEST` is dropped."""
    groups: dict[Hashable, list[Answering]] = {}
    for one in asked:
        if (common := _common_of(one)) is not None:
            groups.setdefault(common, []).append(one)
    cut = [group[at : at + MOST] for group in groups.values() for at in range(0, len(group), MOST)]
    return [group for group in cut if len(group) >= FEWEST]


def _common_of(asked: Answering) -> Hashable | None:
    return asked.common if isinstance(asked, Streamed) else in_common(asked)


def in_common(asked: Answering) -> Hashable | None:
    """What members of one batch have in common: architecture, code, and the meaning of inputs and outputs.

    None if a member has to be asked alone.
    """
    if type(asked) is not Network or asked.task.of_tokens or not _is_small(asked.module):
        return None
    member, values = asked.member, _values(asked.module)
    if values is None:
        return None
    meaning = (member.model, member.output, member.class_order, member.units, member.variance)
    return meaning, asked.wants, architecture(asked.module), values


def _is_small(module: nn.Module) -> bool:
    """Whether a batch is faster: all tensors are matrices and vectors, and none is large."""
    if any(isinstance(one, nn.RNNBase | nn.MultiheadAttention) for one in module.modules()):
        return False
    tensors = [*module.parameters(), *module.buffers()]
    return bool(tensors) and all(tensor.dim() <= 2 and tensor.numel() <= LARGEST for tensor in tensors)


def _values(module: nn.Module) -> Hashable | None:
    """The attributes of modules besides parameters, buffers and submodules, which a batch has once for all members.

    None if an array is among them, such as a weight that is not a parameter.
    """
    held = []
    for name, one in module.named_modules():
        for what, value in sorted(vars(one).items()):
            if isinstance(value, Tensor | np.ndarray):
                return None
            if not what.startswith("_"):
                held.append((name, what, repr(value)))
    return tuple(held)


@torch.no_grad()
def _agreeing(group: Sequence[Answering], shown: Callable[[Inputs], Tensor]) -> Together | None:
    """The group as a batch if its answers to some rows agree with its members' own; else None."""
    if len({_common_of(one) for one in group}) > 1:
        return None
    networks = [one for one in map(opened, group) if isinstance(one, Network)]
    if len(networks) < len(group):
        return None
    x = shown(networks[0].wants)
    if not x.is_floating_point():
        return None
    rows = range(len(x))
    try:
        batch = Together(networks)
        said = batch.answers("some rows", rows, x)
        alone = [network.answers("some rows", rows, x) for network in networks]
    except (RuntimeError, EdistillError):
        return None
    if said is None or any(one.shape != each.shape for one, each in zip(alone, said, strict=True)):
        return None
    # relative to each member's own largest number: large answers of one must not hide an error in another's
    same = all(np.abs(one - each).max() <= APART * np.abs(one).max() for one, each in zip(alone, said, strict=True))
    return batch if same else None


def _flat(returned: Any) -> Any:
    """The output (M, B, …) of a batch as that of M · B rows; a pair of tensors stays a pair."""
    if isinstance(returned, Tensor):
        return returned.flatten(0, 1)
    return tuple(part.flatten(0, 1) for part in returned)
