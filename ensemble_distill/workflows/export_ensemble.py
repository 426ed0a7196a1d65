"""`edistill export --ensemble`: the members as one ONNX file, verified against each member's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.caching.panel import wanted
from ensemble_distill.caching.probe import open_members
from ensemble_distill.caching.unchanged import refuse_changed_members
from ensemble_distill.data.each import only_array
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rows import plain_inputs
from ensemble_distill.data.several import arrays_of
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.reference import reference_of_members
from ensemble_distill.exporting.beside import write_card
from ensemble_distill.exporting.ensemble import ensemble_module, export_ensemble
from ensemble_distill.exporting.model_card import About
from ensemble_distill.exporting.versions import Versions
from ensemble_distill.facts import ENSEMBLE, HELD_OUT, AnyPreprocessing, Member, Part, Several
from ensemble_distill.runs.args import settings_content
from ensemble_distill.runs.folder import CONFIG, EXPORTED, EXPORTS, ensemble_folder
from ensemble_distill.runtime.files import refuse_outside
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.spread import spread
from ensemble_distill.settings import FILE_NAME
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.workflows.export_rows import CHECKED_ROWS, checked_on
from ensemble_distill.workspace.folders import refuse_foreign
from ensemble_distill.workspace.splits import class_names
from ensemble_distill.workspace.workspace import Workspace, sources_of


def export_members(
    workspace: Workspace, versions: Versions, card: bool = True
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Write `ensemble/export/model.onnx` beside the folder of runs; this needs neither a run nor a cache.

    Args:
        versions: ONNX versions of the file.
        card: also write the model card and the settings, which are returned separately.

    Returns:
        The exported file, and the files beside it.

    Raises:
        EdistillError: there are no members or no data to verify on; a member is not a torch network, or cannot be
            exported; no single input serves all members; or the file disagrees with the members.
    """
    folder = ensemble_folder(Path(workspace.settings.output.runs), workspace.settings.limit)
    refuse_foreign(folder, EXPORTS, "an exported ensemble", "output.runs, beside which it stands")
    if (folder / CONFIG).is_file():
        raise EdistillError(f"{folder} is a run, and the ensemble is exported to there. Move the run away.")
    refuse_outside(folder, folder / EXPORTED)
    plans = _plans(workspace)
    known = workspace.cached_names
    teachers = workspace.ensemble(class_names(sources_of(plans), known))
    opened = open_members(workspace.task, plans, teachers, known, workspace.progress)
    modules = [_module(asked) for asked in opened]
    if workspace.has_cache:
        refuse_changed_members(workspace.cache, workspace.split, list(plans), opened)
    name = checked_on(plans)
    source = plans[name].source
    x, said = _answers(opened, source, name)
    widths = {asked.member.name: one.shape[-1] for asked, one in zip(opened, said, strict=True)}
    task = workspace.task.found(sources_of(plans), widths, None)
    settings = workspace.settings.teachers
    members = [asked.member for asked in opened]
    weights = settings.shares([member.name for member in members])
    only = _only(source, members[0].preprocessing, x)
    module = ensemble_module(task, source.kind, members, modules, x, weights, settings.average, only)
    x = x if only is None else x.flatten(1).float()
    reference = reference_of_members(
        task, module, module.preprocessing, sources_of(plans), workspace.workers, workspace.progress
    )
    with one_writer(folder):
        columns = getattr(source, "columns", None)
        written = export_ensemble(module, x, np.stack(said, axis=1), folder / EXPORTED, columns, reference, versions)
        return (written,), _beside(workspace, task, members, written) if card else ()


def _beside(workspace: Workspace, task: Task, members: Sequence[Member], file: Path) -> tuple[Path, ...]:
    about, folder = About(ENSEMBLE, task, ENSEMBLE, members, settings=FILE_NAME), file.parent
    return write_card(about, [file], folder, settings_content(workspace.settings, folder), workspace.progress)


def _plans(workspace: Workspace) -> dict[str, SplitPlan]:
    """The splits that tell what an answer is, without views. Raises EdistillError if there are none."""
    names = [name for name in workspace.split_names if not name.startswith("ood/") and name != HELD_OUT]
    checked_on(names)
    plans = workspace.splits(names, workspace.cached_names)
    return {name: SplitPlan.plain(plan.source) for name, plan in plans.items()}


def _module(asked: Answering) -> nn.Module:
    if asked.module is None:
        raise EdistillError(
            f"Member {asked.member.name} is not a network of torch, and one ONNX graph is made of networks. Move "
            "it out of teachers.path, or train a student of the ensemble and export that (edistill export --onnx)."
        )
    return asked.module


def _only(source: Source, to: AnyPreprocessing | None, x: Tensor) -> Several | None:
    """The one of several arrays that a member takes; None if it takes the whole row.

    Args:
        x: rows as the member takes them, (B, ...).
    """
    if (arrays := arrays_of(source)) is None or isinstance(to, Several):
        return None
    name = only_array({array.name: array.kind for array in arrays}, to)
    (kind,) = (array.kind for array in arrays if array.name == name)
    return Several((Part(name, name, kind, tuple(x.shape[1:]), to),))


def _answers(opened: Sequence[Answering], source: Source, name: str) -> tuple[Tensor, list[NDArray[np.float32]]]:
    """Some rows as the first member takes them, and each member's outputs for them, (B, W)."""
    rows = spread(len(source), CHECKED_ROWS)
    shown = {inputs: torch.from_numpy(plain_inputs(source, rows, inputs.preprocessing)) for inputs in wanted(opened)}
    said = [asked.answers(name, rows, None if asked.wants is None else shown[asked.wants]) for asked in opened]
    first = opened[0].wants
    assert first is not None  # a network always takes inputs
    return shown[first], said
