"""Which of the data's classes a classifier of another library means by its labels, which may be numbers or names."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import numbered
from ensemble_distill.tasks import open_task
from ensemble_distill.tasks.checks.class_order import Order, order_by_names
from ensemble_distill.teachers.teacher import Context

Label = bool | int | float | str


def order_by_labels(context: Context, name: str, labels: Sequence[Label] | None, source: str) -> Order | None:
    """The class that each output means; None for the data's order.

    Numbers that the data does not use as names are taken in their order: the least is the data's first class. So are
    numbers from 0 that it does use, as of a classifier that was trained on the places of the classes.

    Args:
        name: the member's.
        labels: of its outputs, in their order; None where nothing says them.
        source: where they stand, for messages.

    Raises:
        EdistillError: they are other names than the data's, or the settings contradict them; or they are numbers of
            which the data uses some as names, and others not. Of targets: they are the data's in another order.
    """
    if labels is None:
        return context.order(name)
    if not open_task(context.task).named:
        _refuse_other_targets(name, [str(label) for label in labels], context.names, source)
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
        return context.order(name, names, source)  # which refuses them: 8 may be no other than the class called so
    return None if in_order == tuple(range(len(classes))) else in_order


def _whole(labels: Sequence[Label], texts: bool) -> list[int] | None:
    """Labels as whole numbers; None where one is none.

    Args:
        texts: whether the digits of a text are a number, too.
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
    """Refuse columns that are the data's targets in another order: means are read by place."""
    if targets is not None and list(names) != list(targets) and sorted(names) == sorted(targets):
        raise EdistillError(
            f"{name}: {source} are {first_few(names, 5)}, and the data's targets are {first_few(list(targets), 5)}. "
            "Write them in the order of the data's."
        )
