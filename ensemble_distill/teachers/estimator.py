"""A scikit-learn estimator or pipeline, saved by skops (.skops), or by joblib (.joblib), which is a pickle.

Classifiers answer by `predict_proba`, regressors by `predict`, which gives a mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.data.stored import Archive
from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.facts import Member
from ensemble_distill.tasks import Task, open_task
from ensemble_distill.teachers.answering import ROUNDING, Answering, Inputs, Rows
from ensemble_distill.teachers.labels import order_by_labels
from ensemble_distill.teachers.names import member_name
from ensemble_distill.teachers.preprocessing import from_settings, settled
from ensemble_distill.teachers.remarked import Remarked
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.whole_files import file_digest, refuse_changed

ENDINGS = (".skops", ".joblib")


def claims(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def load(path: Path, context: Context) -> Teacher:
    """Load a member; raises EdistillError for a file that needs trust, or an estimator that does not fit the task."""
    name, given, digest = member_name(path), from_settings(context.settings.preprocessing), file_digest(path)
    estimator, classifies = _read(path, context.trust), open_task(context.task).named
    _refuse_other_task(path, estimator, context)
    classes = getattr(estimator, "classes_", None) if classifies else None
    labels = None if classes is None or isinstance(classes, list) else np.asarray(classes).tolist()
    member = Member(
        name=name,
        sha256=digest,
        **(context.stated | ({"output": "probabilities"} if classifies else {})),
        class_order=order_by_labels(context, name, labels, f"{path.name}'s classes_"),
        preprocessing=settled(name, given) if given and context.arrays is None else None,
        model=path.name,
    )
    opens = partial(_open, member, path, context.trust)
    return Teacher.asked_only(member, "a scikit-learn estimator", opens, Origin(path.name))


def _open(member: Member, path: Path, trust: bool, task: type[Task]) -> Answering:
    refuse_changed(path, member.sha256, file_digest(path))
    return Estimator(task, member, _read(path, trust), path.stat().st_size)


def _refuse_other_task(path: Path, estimator: Any, context: Context) -> None:
    if open_task(context.task).named:
        if not hasattr(estimator, "predict_proba"):
            raise EdistillError(
                f"{path} is a {type(estimator).__name__} without predict_proba, and the task is {context.task}. Wrap "
                "it in sklearn.calibration.CalibratedClassifierCV, fit that, and save it in its place."
            )
    elif not hasattr(estimator, "predict") or context.settings.output != "mean":
        raise EdistillError(
            f"{path} is a {type(estimator).__name__}, which predicts a mean, and teachers.output is "
            f'{context.settings.output!r}. Set teachers.output = "mean" and teachers.variance, for all members or in a '
            "table of teachers.members."
        )


# --- reading ----------------------------------------------------------------------------------------------------


def _read(path: Path, trust: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files of another release: accuracy on the labels shows what matters
        if path.name.lower().endswith(".joblib"):
            return _from_joblib(path, trust)
        return _from_skops(path, trust)


def _from_joblib(path: Path, trust: bool) -> Any:
    if not trust:
        raise EdistillError(
            f"{path} is a pickle, and loading it can run any code. If you trust where it comes from, pass "
            "--trust-checkpoints. Otherwise save it with skops.io.dump(estimator, 'member.skops'), or convert it "
            "to ONNX."
        )
    import joblib

    try:
        return joblib.load(path)
    except Exception as error:  # unpickling can fail in any way
        raise _unreadable(path, error) from None


def _from_skops(path: Path, trust: bool) -> Any:
    try:
        from skops import io
    except ImportError:
        raise EdistillError(f"{path} needs a package: pip install 'edistill[sklearn]'.") from None
    _refuse_less(path)
    try:
        unknown = io.get_untrusted_types(file=path)
    except Exception as error:  # a schema may hold anything
        raise _unreadable(path, error) from None
    if unknown and not trust:
        raise EdistillError(
            f"{path} names types that skops does not know to be harmless: {first_few(list(map(str, unknown)), 5)}. If "
            "you trust where it comes from, pass --trust-checkpoints. Otherwise convert it to ONNX."
        )
    try:
        return io.load(path, trusted=unknown)
    except Exception as error:
        raise _unreadable(path, error) from None


def _refuse_less(path: Path) -> None:
    """Refuse an archive whose arrays claim more bytes than it holds."""
    archive = Archive(path)
    for name in archive.names:
        if archive.is_array(name):
            archive.read(name)


def _unreadable(path: Path, error: Exception) -> EdistillError:
    return EdistillError(
        f"{path} is not an estimator that can be read: {first_line(error)}. Copy it again, or save it again with the "
        "releases that are installed here."
    )


# --- asking -----------------------------------------------------------------------------------------------------


class Estimator:
    """See `Answering`. Rows of more than one dimension are flattened.

    Args:
        size: of its file, in bytes.
    """

    module, fineness = None, ROUNDING

    def __init__(self, task: type[Task], member: Member, estimator: Any, size: int = 0) -> None:
        self.task, self.member, self._estimator, self.size = task, member, estimator, size
        self.remarked = Remarked(task, member)

    @property
    def wants(self) -> Inputs:
        return Inputs(self.member.preprocessing)

    @property
    def remark(self) -> str | None:
        return self.remarked.remark

    def meets(self, split: str, rows: Rows) -> None:
        """Raise EdistillError if the rows' columns are in another order than the estimator was fitted on."""
        fitted, here = getattr(self._estimator, "feature_names_in_", None), getattr(rows, "features", None)
        if fitted is None or here is None:
            return
        places = {str(name): place for place, name in enumerate(fitted)}
        moved = [name for place, name in enumerate(here) if places.get(name, place) != place]
        if moved:
            raise EdistillError(
                f"Member {self.member.name} was fitted on the columns {first_few(list(places), 8)}, and {split} has "
                f"{first_few(here, 8)}: {first_few(moved, 4)} would be taken for others. Set data.columns.inputs to "
                "the columns it was fitted on, in their order."
            )

    def to(self, device: torch.device) -> None:
        """Does nothing: scikit-learn runs on the CPU."""

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        assert inputs is not None  # requested by `wants`
        x = self.remarked.flat(inputs.cpu().numpy()).astype(np.float64)
        return self.remarked.answers(self._said(x, f"at row {rows[0]} of {split}"), split, rows)

    def _said(self, x: NDArray[np.float64], where: str) -> NDArray[np.float64]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about columns without names
                found = self._estimator.predict_proba(x) if self.task.named else self._estimator.predict(x)
        except Exception as error:  # an estimator may be anyone's code
            raise EdistillError(
                f"Member {self.member.name} fails {where} on {x.shape[1]} numbers a row: {first_line(error)}. Give the "
                "data it was trained on, or remove it from teachers.path."
            ) from error
        if isinstance(found, list):
            found = np.stack([self._yes(label, np.asarray(one)) for label, one in enumerate(found)], axis=1)
        return np.ascontiguousarray(found, np.float64)

    def _yes(self, label: int, found: NDArray[Any]) -> NDArray[Any]:
        """The probability (B,) that a row has a label, for the multi-label task.

        scikit-learn returns a single column, that of "no", for a label that no row had in fitting; its probability
        is 0.
        """
        classes = np.asarray(self._estimator.classes_[label]).tolist()
        if len(classes) != found.shape[1] or not set(classes) <= {0, 1}:
            raise EdistillError(
                f"Member {self.member.name} says {found.shape[1]} numbers of label {label}, whose values were "
                f"{first_few([str(value) for value in classes])}, and labels are 0 and 1. Fit it on those."
            )
        return found[:, classes.index(1)] if 1 in classes else np.zeros(len(found))
