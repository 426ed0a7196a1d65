"""Which of the data's classes a classifier of another library means by its labels, which may be numbers or names."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_distill.facts import numbered
from ensemble_distill.tasks.checks.class_order import Order
from ensemble_distill.teachers.teacher import Context


def order_by_labels(context: Context, name: str, labels: Sequence[int | str] | None, source: str) -> Order | None:
    """The class that each output means; None for the data's order.

    Numbers that the data does not use as names are taken in their order: the least is the data's first class.

    Args:
        name: the member's.
        labels: of its outputs, in their order; None where nothing says them.
        source: where they stand, for messages.

    Raises:
        EdistillError: they are other names than the data's, or the settings contradict them.
    """
    if labels is None:
        return context.order(name)
    names, known = [str(label) for label in labels], context.classes
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) < len(labels) or (known is not None and set(names) == set(known)):
        return context.order(name, names, source)
    if known is not None and len(known) != len(labels):
        return context.order(name, names, source)  # which refuses them
    classes, ranks = known or numbered(len(labels)), sorted(numbers)
    in_order = tuple(ranks.index(number) for number in numbers)
    if context.said is not None and context.said[1].classes is not None:
        return context.order(name, [classes[at] for at in in_order], source)
    return None if in_order == tuple(range(len(classes))) else in_order
