"""A forecast of each command's time and disk space, from a few rows through the members and the body."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble_distill.caching.forecast import TIMED, in_turn, seconds_a_row, timed
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.source import positions_of
from ensemble_distill.facts import TRAINED
from ensemble_distill.runtime.spread import spread
from ensemble_distill.setup.checks import Examined
from ensemble_distill.teachers.answering import Inputs
from ensemble_distill.training.budget import default_epochs
from ensemble_distill.training.forecast import seconds_of
from ensemble_distill.training.loop import checkpoint_bytes
from ensemble_distill.workspace.workspace import Workspace

NUMBER = 4  # bytes of a float32
NOTES = 15_000  # bytes of what stands beside the weights: names, settings, an exported graph without its weights
COMPRESSED = 0.75  # share of the figures' bytes that is left in a compressed file


@dataclass(frozen=True)
class Step:
    """A command, the seconds it takes and the bytes it writes, for this machine under its current load."""

    command: str
    seconds: float
    bytes: int


def forecast(workspace: Workspace, found: Examined) -> list[Step]:
    """The steps of the whole workflow, as far as members and student could be built; empty if they could not."""
    plan = found.plans.get("train")
    if plan is None or not found.groups:
        return []
    rendering, asking = seconds_a_row("train", plan, found.groups[0], workspace.device)
    each = in_turn(rendering, asking, found.groups)
    counted = sum(len(one.source) * one.count for one in found.plans.values())
    reading = found.room.seconds * len(found.plans) if len(found.groups) > 1 else 0
    filled = found.records + sum(found.to_decode.values())
    steps = [Step("cache-logits", each * counted + reading, filled)]
    if found.body is None:
        return steps
    taken = Inputs(found.taken)
    rows = spread(len(plan.source), TIMED)
    update, asked_once = _of_body(found.body, seen(plan.rows(), rows, [0], [taken])[0, taken])
    trained = sum(len(found.plans[name].source) for name in TRAINED if name in found.plans)
    train = workspace.settings.train
    epochs = default_epochs(trained, train.batch_size, train.effort) if train.epochs is None else train.epochs
    validated = len(found.plans["validation"].source) if "validation" in found.plans else 0
    size = found.weights or sum(tensor.nbytes for tensor in found.body.state_dict().values())
    student = rendering + asked_once
    rows_trained = epochs * trained
    training = seconds_of((update, asked_once, rendering), rows_trained, rows_trained, validated, epochs)
    steps.append(Step(f"train ({epochs:,} epochs)", training, size + checkpoint_bytes(size, train.model_ema) + NOTES))
    others = sum(len(one.source) for name, one in found.plans.items() if name not in TRAINED)
    steps.append(Step("evaluate", others * student, _of_evaluation(found)))
    steps.append(Step("export --onnx", 10.0, size + NOTES))
    return steps


def _of_evaluation(found: Examined) -> int:
    """Bytes of an evaluation: its document, and the figures of each row of the test and OOD splits, about."""
    if found.task is None:
        return 0
    # some figures are of each label or target
    each = 1 if found.task.called in ("classes", "tokens") else max(1, len(found.task.names))
    total = NOTES
    for name, plan in found.plans.items():
        if name != "test" and not name.startswith("ood/"):
            continue
        of_model = (8 if name == "test" else 5) if each == 1 else (7 if name == "test" else 5) * each + 4
        models = 4 + len(found.members)  # each member, the ensemble, best-2, best-3 and the student
        answers = len(plan.source) * (positions_of(plan.source) or 1)
        total += round(answers * (models * of_model + 6) * NUMBER * COMPRESSED)
    return total


def _of_body(body: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Seconds per row of an update and of a forward pass; the body must be a new one, since its gradients and mode
    change."""

    def update() -> None:
        body.train()
        body(x).square().mean().backward()

    def asked() -> None:
        body.eval()
        with torch.no_grad():
            body(x)

    with torch.random.fork_rng(devices=[]):
        return timed(update)[1] / len(x), timed(asked)[1] / len(x)
