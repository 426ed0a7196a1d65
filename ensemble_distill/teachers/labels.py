"""Match the labels of another library's classifier, numbers or names, to the data's classes."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import numbered
from ensemble_distill.tasks import open_task
from ensemble_distill.tasks.checks.class_order import Order, order_by_names
from ensemble_distill.teachers.teacher import Context

Label = bool | int | float | str


def order_by_labels(context: Context, name: str, labels: Sequence[Label] | None, source: str) -> Order | None:
    """The class of the data that each output means; None for the data's own order.

    Numbers that the data does not use as class names are ranked: the smallest means the data's first class. So are the
    numbers 0 … K − 1 even if the data uses some of them as names: the classifier was trained on class positions.

    Where a row may have several labels, 0 and 1 are the values that each label has, and name no output.

    Args:
        name: the member's.
        labels: of its outputs, in order; None if unknown.
        source: where the labels come from, for messages.

    Raises:
        EdistillError: the labels are other names than the data's, or contradict the settings; they are other numbers,
            of which the data uses only some as names; or, for targets, they are the data's in another order.
    """
    if labels is None:
        return context.order(name)
    task = open_task(context.task)
    if not task.named:
        _refuse_other_targets(name, [str(label) for label in labels], context.names, source)
        return context.order(name)
    if not task.one_class and set(labels) <= {0, 1}:
        return context.order(name)
    known, numbers = context.classes, _whole(labels, context.classes is None)
    names = [str(label) for label in (labels if numbers is None else numbers)]
    if numbers is None or (known is not None and (set(names) == set(known) or len(known) != len(labels))):
        return context.order(name, names, source)
    classes, ranks = known or numbered(len(labels)), sorted(numbers)
    in_order = tuple(ranks.index(number) for number in numbers)
    if len(set(in_order)) < len(in_order):
        return context.order(name, names, source) if known else order_by_names(name, names, classes, source)
    if context.said is not None and context.said[1].classes is not None:
        return context.order(name, [classes[at] for at in in_order], source)
    if set(names) & set(classes) and known is not None and ranks != list(range(len(ranks))):
        return context.order(name, names, source)  # raises: label 8 can only mean the class named 8
    return None if in_order == tuple(range(len(classes))) else in_order


def _whole(labels: Sequence[Label], texts: bool) -> list[int] | None:
    """Labels as whole numbers; None if one of them is not a whole number.

    Args:
        texts: whether a text of digits counts as a number.
    """
    found = []
    for label in labels:
        if isinstance(label, str) and not (texts and label.isdecimal()):
            return None
        if isinstance(label, float) and not label.is_integer():
            return None
        found.append(label if isinstance(label, bool) else int(label))
    return found


def _refuse_other_targets(name: str, names: Sequence[str], targets: Sequence[str] | None, source: str) -> None:
    """Refuse the data's targets in another order: means are read by position."""
    if targets is not None and list(names) != list(targets) and sorted(names) == sorted(targets):
        raise EdistillError(
            f"{name}: {source} are {first_few(names, 5)}, and the data's targets are {first_few(list(targets), 5)}. "
            "Write them in the order of the data's."
        )
