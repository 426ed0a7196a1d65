"""The loss and the NLL on the validation rows while a student trains."""

from __future__ import annotations

import torch

from ensemble_distill.cache.manifest import refuse_other_data
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data.batches import plain_batches
from ensemble_distill.facts import Preprocessing
from ensemble_distill.methods.method import Batch, Labels, Stage, Step
from ensemble_distill.runtime.devices import loader_workers
from ensemble_distill.settings import Settings
from ensemble_distill.students.student import Student
from ensemble_distill.training.feed import Pooling
from ensemble_distill.training.loop import Validate
from ensemble_distill.workspace.splits import plan_splits


def validation(
    settings: Settings,
    cache: Cache,
    preprocessing: Preprocessing | None,
    pooling: Pooling,
    device: torch.device,
    needs_labels: bool,
) -> Validate | None:
    """A function that gives the loss and the NLL on the validation rows; None when they are not cached, or lack the
    labels that the loss needs."""
    if "validation" not in settings.splits() or cache.manifest.views("validation") == 0:
        return None
    plan = plan_splits(settings, ["validation"], cache.manifest.classes)["validation"]
    refuse_other_data(cache.folder, "validation", cache.manifest.splits["validation"], plan.facts())
    records = cache.open("validation")
    workers = loader_workers(settings.train.workers, device)
    labels = plan.source.labels
    if labels is None and needs_labels:
        return None

    @torch.no_grad()
    def validate(student: Student, stage: Stage) -> dict[str, float]:
        losses = nll = 0.0
        for rows, (x,) in plain_batches(plan.source, [preprocessing], workers, device):
            teacher = pooling.predictive(torch.from_numpy(records.read(list(rows))).to(device))
            predictive = student.predictive(student(x.to(device)).float())
            y = None if labels is None else torch.as_tensor(labels[list(rows)], device=device)
            ones = torch.ones(len(rows), device=device)
            known = None if y is None else Labels(y, y.clone(), ones, ones.bool())
            if y is not None:
                nll += predictive.pooled_nll(y).sum().item()
            # last, since a method's loss may change what it is given
            losses += len(rows) * stage.loss(Batch(teacher, known), predictive, Step(0, 1)).item()
        count = len(plan.source)
        return {"validation_loss": losses / count} | ({} if labels is None else {"validation_nll": nll / count})

    return validate
