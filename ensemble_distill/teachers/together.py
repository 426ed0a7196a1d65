"""Members of one architecture that answer in one batch: each of their weights is one tensor, and `vmap` runs them.

That saves the start of each operation, of the checks and of the encoding for each member, and gives several processor
cores whole members to work on. A batch of 256 rows asked, checked and encoded takes, in milliseconds of one core:

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

With two cores sixteen small ones take half the time (examples/benchmarks/together.py). Hence `FEWEST`, `MOST` and
`LARGEST`, and no convolutions. This is a rule, and no timing of each pass: the last bits of
an answer depend on how it was computed, and the same pass has to end with the same bytes whatever else the machine did,
and whichever of several processes computed a block.
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

FEWEST, MOST = 8, 16  # members in a batch; of more its numbers leave the processor's caches
LARGEST = 2**18  # numbers of a member's largest tensor, beyond which little is gained
APART = 1e-4  # of the largest number: a batch that says something else is none


class Together:
    """Some members as one.

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
        """What each member says of some rows, (M, B, W); see `Answering.answers`.

        None where that fails, or is no answer: who is asked alone tells why.
        """
        first, count = self.members[0], len(self.members) * len(rows)
        try:
            with torch.inference_mode():
                returned = self._run(*self._state, inputs.clone())
            raw = first.joined(_flat(returned), count, f"at row {rows[0]} of {split}")
            said = first.checked(raw, split, [*rows] * len(self.members))
        except Exception:  # a member is anyone's code, and is not made for this
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
    """The members that are asked in one batch; all others are asked one by one.

    Args:
        shown: some rows as members want them, (B, …), on which a batch is compared with its members; read where there
            is one.
        noted: names of those that a pass was begun with in one batch: it goes on so.
        settled: names of members that are asked as they were, in a noted batch or alone.
    """
    named = {one.member.name: one for one in asked}
    groups = [[named[name] for name in names if name in named] for names in noted]
    groups += _alike([one for one in asked if one.member.name not in settled])
    for group in groups:
        if len(group) > 1 and (batch := _agreeing(group, shown)) is not None:
            yield batch
            del batch  # before the next one is made


def _alike(asked: Sequence[Answering]) -> list[list[Answering]]:
    """Members by what those in one batch have in common, `MOST` at a time; what is left of less than `FEWEST` is no
    batch."""
    groups: dict[Hashable, list[Answering]] = {}
    for one in asked:
        if (common := _common_of(one)) is not None:
            groups.setdefault(common, []).append(one)
    cut = [group[at : at + MOST] for group in groups.values() for at in range(0, len(group), MOST)]
    return [group for group in cut if len(group) >= FEWEST]


def _common_of(asked: Answering) -> Hashable | None:
    return asked.common if isinstance(asked, Streamed) else in_common(asked)


def in_common(asked: Answering) -> Hashable | None:
    """What members in one batch have in common: architecture, code, and what inputs and outputs mean; None of one that
    is asked alone."""
    if type(asked) is not Network or asked.task.of_tokens or not _is_small(asked.module):
        return None
    member, values = asked.member, _values(asked.module)
    if values is None:
        return None
    meaning = (member.model, member.output, member.class_order, member.units, member.variance)
    return meaning, asked.wants, architecture(asked.module), values


def _is_small(module: nn.Module) -> bool:
    """Whether a batch of such members is faster: of matrices and vectors, none of them large."""
    if any(isinstance(one, nn.RNNBase | nn.MultiheadAttention) for one in module.modules()):
        return False
    tensors = [*module.parameters(), *module.buffers()]
    return bool(tensors) and all(tensor.dim() <= 2 and tensor.numel() <= LARGEST for tensor in tensors)


def _values(module: nn.Module) -> Hashable | None:
    """What its modules hold besides parameters, buffers and modules, which a batch has once for all members; None where
    arrays are among it, as a weight that is no parameter."""
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
    """They as one, where that says of some rows what they do."""
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
    # each member by its own largest number: one of large ones must not hide what another says
    same = all(np.abs(one - each).max() <= APART * np.abs(one).max() for one, each in zip(alone, said, strict=True))
    return batch if same else None


def _flat(returned: Any) -> Any:
    """What a batch returns of each member, (M, B, …), as of so many rows; a pair of them as a pair."""
    if isinstance(returned, Tensor):
        return returned.flatten(0, 1)
    return tuple(part.flatten(0, 1) for part in returned)
