"""Forms of calibration that depend on the input or on the head: python examples/diversity/forms.py WORK RUN

WORK is a folder of the study, RUN a run in it. Each form is fitted on the calibration rows and reported on the
validation rows. All but the first exist only in this file: none of them earned a place in `edistill calibrate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from scipy.optimize import brentq
from torch import Tensor

from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.ensemble import Ensemble
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.rows import fidelity_rows, member_rows, prediction_rows
from ensemble_distill.evaluation.students import Students
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workspace.evaluating import open_for_evaluation
from ensemble_distill.workspace.workspace import Workspace

ANCHORED = 3
FIGURES = ("diversity_explained", *(f"model_uncertainty_{name}" for name in ("l1", "ratio", "spearman")))
Spread = Callable[[Categorical], Tensor | float]  # a factor on the deviations: (B, 1, 1), (1, M, 1) or one number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("run")
    given = parser.parse_args()
    settings = load_settings(given.work / "edistill.toml")
    run = Run.open(given.work / "runs" / given.run)
    theirs, mine = _said(settings, run, "calibration")
    ensemble, student = _said(settings, run, "validation")
    wanted = float(theirs.summary().model.mean())

    def scaled(form: Callable[[float], Spread]) -> Spread:
        """The form at the factor that gives the mean model uncertainty of the ensemble."""

        def excess(factor: float) -> float:
            return float(_spread(mine, form(factor)).summary().model.mean()) - wanted

        return form(brentq(excess, 0.05, 8.0, xtol=1e-3))

    mean = float(mine.summary().model.mean())
    forms: dict[str, Spread] = {"none": lambda said: 1.0, "one factor": scaled(lambda s: lambda said: s)}
    for power in (-0.2, -0.1, 0.1, 0.2):
        forms[f"by its own model uncertainty to the power {power}"] = scaled(
            lambda s, power=power: lambda said: s * _relative(said, mean) ** power  # type: ignore[misc]
        )
    each = _per_head(theirs, mine)
    forms["a factor a head"] = scaled(lambda s: lambda said: 1 + s * (each - 1))
    print("form", *FIGURES, sep=",")
    for name, form in forms.items():
        found = _figures(ensemble, _spread(student, form))
        print(name, *(f"{found[key]:.4f}" for key in FIGURES), sep=",")


def _said(settings: Settings, run: Run, split: str) -> tuple[Categorical, Categorical]:
    """The predictive distributions of ensemble and student on a split."""
    given = open_for_evaluation(Workspace(settings, trust=True), run)
    ensemble, students = Ensemble(given, run), Students(given, [run], calibrated=False)
    source = open_for([run], given.splits, split)
    raw = torch.cat([mine for _, (mine,) in students.raw(source, split)])
    outputs = torch.cat(list(ensemble.outputs(split, source)))
    return cast(Categorical, ensemble.predictive(outputs)), cast(Categorical, students.modules[0].predictive(raw))


def _relative(said: Categorical, mean: float) -> Tensor:
    return (said.summary().model.clamp_min(1e-9) / mean)[:, None, None]


def _spread(said: Categorical, form: Spread) -> Categorical:
    """Scale the deviations, anchored to the mean as `Categorical.calibrated` does for one factor."""
    factors = form(said)
    log_probs = said.log_probs()
    center = log_probs.mean(1, keepdim=True)
    moved = Categorical(center + factors * (log_probs - center))
    anchor = said.mixture().logits
    for _ in range(ANCHORED):
        moved = Categorical(moved.log_probs() + anchor - moved.mixture().logits)
    return moved


def _per_head(theirs: Categorical, mine: Categorical) -> Tensor:
    """Factors (1, M, 1) at which every head deviates as much as its member."""

    def size(said: Categorical) -> Tensor:
        return (said.means() - said.means().mean(1, keepdim=True)).square().sum((0, 2))

    factors = torch.ones(mine.members, dtype=torch.float64)
    for _ in range(25):
        moved = _spread(mine, lambda said: factors[None, :, None])  # noqa: B023  # used before it changes
        factors = factors * (size(theirs) / size(moved)) ** 0.35
    return factors[None, :, None]


def _figures(ensemble: Categorical, student: Categorical) -> dict[str, float | None]:
    task = Classification(tuple(map(str, range(ensemble.logits.shape[-1]))))
    theirs = prediction_rows(task, ensemble, None)
    rows = fidelity_rows(ensemble, student)
    members = member_rows(task, ensemble, None)
    return fidelity(theirs, members, prediction_rows(task, student, None), rows, task.unit(theirs))


if __name__ == "__main__":
    main()
