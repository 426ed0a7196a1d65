"""Training the members of an ensemble in parallel: each of their weights is stacked into one tensor, and run with
`vmap`.

Small networks keep a processor busy only together. Each member still has its own initialization and its own order of
rows, and ends as the state dict that its own module would have.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

Loss = Callable[[Tensor, Tensor], Tensor]


class Batched:
    """M modules of one architecture as one.

    Args:
        make_member: builds a member; called once per seed, after `torch.manual_seed(seed)`.
        seeds: (M,), one per member, for its initialization and its order of rows.
    """

    def __init__(self, make_member: Callable[[], nn.Module], seeds: Sequence[int]) -> None:
        modules = []
        for seed in seeds:
            torch.manual_seed(seed)
            modules.append(make_member())
        self.parameters, self.buffers = stack_module_state(modules)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._skeleton = copy.deepcopy(modules[0]).to("meta")
        # each member has its own dropout
        self._run = torch.vmap(self._one, randomness="different")

    def __call__(self, x: Tensor) -> Tensor:
        """Map (M, B, …), a batch per member, to the members' outputs (M, B, …), in training mode."""
        self._skeleton.train()
        return self._run(self.parameters, self.buffers, x)

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 2000) -> Tensor:
        """The outputs (M, N, …) of every member for the same rows (N, …), in eval mode."""
        self._skeleton.eval()
        run, members = partial(self._run, self.parameters, self.buffers), len(self.generators)
        return torch.cat([run(part.expand(members, *part.shape)) for part in x.split(batch_size)], dim=1)

    def batches(self, rows: int, batch_size: int) -> Iterator[Tensor]:
        """Row indices (M, B) of one epoch, in each member's own order; an incomplete last batch is dropped."""
        orders = torch.stack([torch.randperm(rows, generator=g) for g in self.generators])
        batch_size = min(batch_size, rows)
        return (orders[:, at : at + batch_size] for at in range(0, rows - batch_size + 1, batch_size))

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The state dict of each member."""
        stacked = {**self.parameters, **self.buffers}
        return [
            {name: values[index].detach().clone() for name, values in stacked.items()}
            for index in range(len(self.generators))
        ]

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self._skeleton, (parameters, buffers), (x,))


def train(
    members: Batched,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
) -> Iterator[int]:
    """Train with AdamW and a cosine schedule; yields the number of finished epochs after each one.

    Args:
        members: trained in place.
        x, y: (N, …), all rows, in memory.
        loss: maps outputs (M, B, …) and targets (M, B, …) to losses (M, B).
    """
    steps = epochs * max(1, len(x) // batch_size)
    optimizer = torch.optim.AdamW(members.parameters.values(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for rows in members.batches(len(x), batch_size):
            optimizer.zero_grad()
            # a sum over members, so that each gets the gradient of the mean over its own batch
            loss(members(x[rows]), y[rows]).mean(dim=1).sum().backward()
            optimizer.step()
            schedule.step()
        yield epoch + 1


def save_members(members: Batched, files: Sequence[Path]) -> None:
    """Write one safetensors file per member; a file that exists is complete."""
    for state, file in zip(members.state_dicts(), files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file(state, part)
        part.replace(file)
