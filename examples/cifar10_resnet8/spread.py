"""A learned spread: how far a trained Hydra's heads move apart on each row.

A custom method and a custom body, for `edistill train --method spread.py:Spread`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from body import make_body
from pydantic import BaseModel, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from ensemble_distill import Method, Stage

FAINT = 1e-4  # share of the total uncertainty below which the heads' differences are rounding, as in `calibrate`
ANCHORED = 3  # how often the pooled prediction is brought back, as in `calibrate`


class Spreading(nn.Module):
    """A Hydra's body and heads as one body, whose features are its heads' logits, spread anew on each row.

    A row's factor is exp(½ s), where s is a linear function of the features and of `row_facts`, between −3 and 3 after
    halving. The pooled prediction stays nearly the same.
    """

    def __init__(self, width: int, tail: int, members: int, classes: int) -> None:
        super().__init__()
        self.body, features = make_body(width, tail), 27 * width + 2 * tail
        self.weight = nn.Parameter(torch.zeros(features, members * classes))
        self.bias = nn.Parameter(torch.zeros(members, classes))
        self.spread = nn.Linear(2 + 3 * classes + features, 1)
        nn.init.zeros_(self.spread.weight)
        nn.init.zeros_(self.spread.bias)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        with torch.autocast(x.device.type, enabled=False):
            features = features.float()
            heads = (features @ self.weight).view(-1, *self.bias.shape) + self.bias
            return self.spread_apart(heads.log_softmax(-1), features).flatten(1)

    def spread_apart(self, heads: Tensor, features: Tensor) -> Tensor:
        """Log-probabilities of the heads (B, M, K), spread by a factor of their row."""
        pooled, center = together(heads), heads.mean(1, keepdim=True)
        known = torch.cat([row_facts(heads).to(features), features], 1)
        factor = (0.5 * self.spread(known)).clamp(-3, 3).exp().unsqueeze(-1)
        heads = center + factor * (heads - center)
        for _ in range(ANCHORED):
            heads = heads.log_softmax(-1)
            heads = heads + pooled - together(heads)
        return heads


def together(heads: Tensor) -> Tensor:
    """The log of the mean probabilities, (B, 1, K), of log-probabilities (B, M, K)."""
    return heads.logsumexp(1, keepdim=True) - math.log(heads.shape[1])


def row_facts(heads: Tensor) -> Tensor:
    """What the heads' log-probabilities (B, M, K) say of a row, (B, 2 + 3 K).

    ln(total ÷ model uncertainty), ln(total) ÷ 3, and of each class p, ln p ÷ 5 and its share of Σ p (1 − p), where p is
    the pooled prediction. In float64: the uncertainties of nearly certain rows are small differences.
    """
    heads = heads.double().log_softmax(-1)
    pooled = together(heads)
    log_p = pooled.squeeze(1)
    p = log_p.exp()
    total = (-(p * log_p).sum(-1, keepdim=True)).clamp_min(1e-6)
    model = (heads.exp() * (heads - pooled)).sum(-1).mean(1).unsqueeze(1)
    unsure = (total / torch.maximum(model, FAINT * total)).log()
    share = p * (1 - p)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-9)
    return torch.cat([unsure, total.log() / 3, p, log_p.clamp_min(-14) / 5, share], 1)


def make_spreading(width: int = 16, tail: int = 512, members: int = 10, classes: int = 10) -> nn.Module:
    return Spreading(width, tail, members, classes)


class SpreadOptions(BaseModel, extra="ignore", populate_by_name=True):  # the folder's [method] table is of the Hydra
    run: str = Field("runs/hydra-s0", description="The trained Hydra, of linear heads.")
    size_weight: float = Field(0.1, ge=0, alias="size-weight", description="Weight of the deviations in the loss.")


class Spread(Method):
    title = "a trained Hydra whose heads learn how far to move apart on each row"
    paper = "none"
    outputs = "one distribution per member"
    several = True
    Options = SpreadOptions

    def heads(self, members):
        return members

    def stages(self, options, members):
        def start(student):
            return start_from_run(student.with_heads(members), Path(options.run))

        def loss(batch, student, step):
            """The pattern of the model uncertainty over rows, and the deviations, which decide its size."""
            own, wanted = student.summary().model, batch.teacher.summary().model
            pattern = (own / own.mean() - wanted / wanted.mean()).abs().mean()
            apart = batch.teacher.member_mean(batch.teacher.deviation_error(student)).mean()
            return pattern + options.size_weight * apart / wanted.mean()

        return [Stage("spread", 1.0, start, loss)]


@torch.no_grad()
def start_from_run(student, run: Path):
    """The student with the weights of a run. Its own heads pass on what the body's say; only the spread is trained."""
    saved, body = load_file(run / "student.safetensors"), student.body
    if saved["heads.layers.0.weight"].shape[-1] != body.bias.shape[1]:
        raise SystemExit(f"The heads of {run} are not linear. Train it with student.heads = [].")
    body.body.load_state_dict({k.removeprefix("body."): v for k, v in saved.items() if k.startswith("body.")})
    weight = saved["heads.layers.0.weight"]  # (M, F, K)
    body.weight.copy_(weight.transpose(0, 1).flatten(1))
    body.bias.copy_(saved["heads.layers.0.bias"])
    body.spread.weight[0, 0] = 0.5  # a beginning between heads as they are and their total uncertainty
    members, classes = body.bias.shape
    own = student.heads.layers[0]
    own.weight.copy_(torch.eye(members * classes).view(members, classes, -1).transpose(1, 2))
    own.bias.zero_()
    for parameter in (body.weight, body.bias):
        parameter.requires_grad_(False)
    student.freeze(["body.body", "heads"])
    return student
