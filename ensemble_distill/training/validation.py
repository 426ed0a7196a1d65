"""The loss and the NLL on the validation rows during training."""

from __future__ import annotations

from dataclasses import replace

import torch

from ensemble_distill.data.batches import plain_batches
from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.methods.method import Batch, Labels, Stage, Step
from ensemble_distill.students.student import Student
from ensemble_distill.training.feed import Feed
from ensemble_distill.training.loop import Validate
from ensemble_distill.training.rows import CachedSplit


def validation(split: CachedSplit, to: AnyPreprocessing | None, feed: Feed, needs: frozenset[str]) -> Validate:
    """A function that computes the loss and, if there are labels, the NLL on the plain rows of a split.

    If the loss needs members, only rows that some member answers count; there must be one.
    """
    labels, device, task = split.source.labels, feed.device, feed.pooling.task
    answered_alone = feed.pooling.partial and "teacher" in needs
    whole = replace(feed.pooling, sampled=split.records.sampled)  # training rows may have other records

    @torch.no_grad()
    def validate(student: Student, stage: Stage) -> dict[str, float]:
        losses = nll = count = 0.0
        for rows, (x,) in plain_batches(split.source, [to], feed.workers, device):
            of_rows = None if labels is None else torch.as_tensor(labels[list(rows)], device=device)
            said = task.each_answer(torch.from_numpy(split.records.read(list(rows))).to(device), of_rows)
            raw = task.each_answer(student(x.to(device)).float(), of_rows)
            y = None if of_rows is None else task.each_label(of_rows, of_rows)
            if answered_alone:
                there = feed.pooling.answered(said)
                said, raw, y = said[there], raw[there], None if y is None else y[there]
            if not len(said):
                continue
            teacher, predictive = whole.predictive(said), student.predictive(raw)
            ones = torch.ones(len(said), device=device)
            known = None if y is None else Labels(y, y.clone(), ones, ones.bool())
            if y is not None:
                nll += predictive.pooled_nll(y).sum().item()
            # last, since a method's loss may change its arguments
            losses += len(said) * stage.loss(Batch(teacher, known), predictive, Step(0, 1)).item()
            count += len(said)
        told = {} if labels is None else {f"validation_{name}": v for name, v in task.of_nll(nll / count).items()}
        return {"validation_loss": losses / count} | told

    return validate
