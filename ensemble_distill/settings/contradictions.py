"""Settings that are each fine, and do not go with each other."""

from __future__ import annotations

from ensemble_distill.settings.sections import Settings


def contradiction(settings: Settings) -> tuple[str, str] | None:
    """The key and the problem of the first setting that does not go with the others."""
    teachers, numbers = settings.teachers, settings.task == "regression"
    emits_numbers = teachers.output.startswith("mean")
    if numbers != emits_numbers:
        wanted = "mean, mean-variance or mean-logvar" if numbers else "logits or probabilities"
        return "teachers.output", (
            f"teachers.output is {teachers.output!r}, and the task is {settings.task}. Say what the members return: "
            f"{wanted}."
        )
    if teachers.output == "mean" and teachers.variance is None:
        return "teachers.variance", (
            'teachers.output is "mean", so nothing says how far targets lie from it. Set teachers.variance to the '
            "members' mean squared error on rows they were not trained on, in the target's unit squared."
        )
    if teachers.output != "mean" and teachers.variance is not None:
        return "teachers.variance", (
            f"teachers.variance is {teachers.variance}, but teachers.output is {teachers.output!r}. Leave the variance "
            'out; it is for members that return a "mean" alone.'
        )
    if not numbers and teachers.standardized is not None:
        return "teachers.standardized", "teachers.standardized is for regression. Leave it out."
    if numbers and teachers.average == "logits":
        return "teachers.average", 'teachers.average is "logits", and regression has none. Leave it out.'
    if numbers and settings.cache.dtype == "float16":
        return "cache.dtype", (
            'cache.dtype is "float16", which rounds away what members differ by where the target is far from 0. For '
            "regression leave it out: float32 is used."
        )
    return None
