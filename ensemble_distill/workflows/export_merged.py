"""`edistill export --merge-heads`: one plain timm model, and what is lost by merging the heads."""

from __future__ import annotations

from pathlib import Path

import torch

from ensemble_distill.data.batches import plain_batches
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.rows import Answers, prediction_rows
from ensemble_distill.exporting.merged import merged, refuse_unmergeable, write_merged
from ensemble_distill.runs.folder import EXPORTS, MERGED
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.grown import GrownValues
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.workspace.evaluating import Splits
from ensemble_distill.workspace.workspace import Workspace

SPLIT = "validation"
MODELS = ("student", "merged")


def refuse_not_merged(workspace: Workspace, run: Run) -> None:
    """Raise EdistillError if the student is not a timm model with linear heads, or there are no validation rows."""
    refuse_unmergeable(run.architecture, str(run.folder), run.body_named)
    if SPLIT not in workspace.split_names:
        raise EdistillError("What --merge-heads loses is measured on validation rows. Set data.validation.")


@torch.no_grad()
def export_merged(workspace: Workspace, run: Run, student: Student, x: torch.Tensor) -> tuple[Path, dict[str, Figures]]:
    """Write `export/merged/` for a run that `refuse_not_merged` accepts.

    Returns:
        The folder, and the validation figures of the student's pooled prediction and of the merged model's.
    """
    what = run.architecture
    model = merged(student, what)
    source = open_for([run], Splits(workspace, what.task), SPLIT)
    kept = {name: GrownValues() for name in MODELS}
    for rows, (inputs,) in plain_batches(source, [what.preprocessing], workspace.workers, torch.device("cpu")):
        y = Answers(what.task, source.labels, rows).labels
        one = what.family.predictive(model(inputs).unsqueeze(1).double(), None, "probabilities")
        for name, said in zip(MODELS, (student.predictive(student(inputs).double()), one), strict=True):
            kept[name].add(prediction_rows(what.task, said, y))
    folder = write_merged(model, student, run.config, x, run.folder / EXPORTS / MERGED, run.made_from)
    return folder, {name: what.task.figures(grown.all()) for name, grown in kept.items()}
