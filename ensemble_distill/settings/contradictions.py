"""Contradictions between settings that are each valid."""

from __future__ import annotations

from itertools import combinations

from ensemble_distill.settings.columns import ColumnSettings
from ensemble_distill.settings.sections import Settings, SplitSettings
from ensemble_distill.settings.teachers import TeacherSettings, of_members
from ensemble_distill.tasks import Task, open_task


def contradiction(settings: Settings) -> tuple[str, str] | None:
    """The key and the problem of the first setting that contradicts another; None if there is none."""
    teachers, task = settings.teachers, open_task(settings.task)
    if told := _meaning(teachers, task, "teachers") or _of_tables(teachers, task):
        return told
    if told := _of_data(settings.data):
        return told
    if teachers.average not in task.averages:
        return "teachers.average", (
            f"teachers.average is {teachers.average!r}, and members for {task.key} do not pool so. Leave it out."
        )
    given = [key for key, value in settings.tokens if value != type(settings.tokens).model_fields[key].default]
    if given and not task.of_tokens:
        return f"tokens.{given[0]}", (
            f"tokens.{given[0]} is {getattr(settings.tokens, given[0])!r}, and the task is {task.key}, whose rows are "
            'no tokens. Leave it out, or set task = "language-modelling".'
        )
    if settings.tokens.size is not None and settings.tokens.vocabulary is not None:
        return "tokens.size", (
            f"tokens.size is {settings.tokens.size}, and tokens.vocabulary lists all there are. Leave one of them out."
        )
    train = settings.train
    if train.effort != "default" and train.epochs is not None:
        return "train.effort", (
            f"train.effort is {train.effort!r}, which says how many epochs there are, and train.epochs is "
            f"{train.epochs}. Leave one of them out: --set train.epochs= or --set train.effort="
        )
    if settings.cache.records == "sampled" and not task.one_class:
        return "cache.records", (
            f'cache.records is "sampled", which draws from the probabilities of classes, and the task is {task.key}. '
            "Leave it out."
        )
    if settings.cache.dtype not in (None, *task.dtypes):
        return "cache.dtype", (
            f"cache.dtype is {settings.cache.dtype!r}, which rounds away what members for {task.key} differ by. Leave "
            f"it out: {task.dtypes[0]} is used."
        )
    return None


def _of_data(data: SplitSettings) -> tuple[str, str] | None:
    """Contradictions in how data.all is divided, and in the columns of tables."""
    if data.all is not None and not data.portions[1:]:
        return "data.split", (
            "data.all is set, and nothing says how it is split. Say the shares, data.split = { validation = 0.1, test "
            "= 0.1 }, or set data.train instead."
        )
    if data.split is not None and data.all is None:
        return "data.split", "data.split is set, and there is no data.all to split. Set that, or leave data.split out."
    if data.split is not None and (total := sum(data.split.shares.values())) >= 1:
        return (
            "data.split",
            f"data.split gives away {total:g} of the rows, and what is left is train. Give less than 1.",
        )
    for name in data.portions:
        if getattr(data, name) is not None:
            return f"data.{name}", f"data.{name} is set, and data.split makes it of data.all. Leave one of them out."
    return None if data.columns is None else _of_columns(data.columns)


def _of_columns(columns: ColumnSettings) -> tuple[str, str] | None:
    texts = (columns.text,) if isinstance(columns.text, str) else columns.text or ()
    made_of = {"inputs": columns.inputs, "text": texts}
    made_of |= {key: (column,) for key in ("images", "array") if (column := getattr(columns, key)) is not None}
    if not any(made_of.values()):
        return "data.columns.inputs", (
            "data.columns.inputs is not set, nor is data.columns.images, text or array. Say which columns members are "
            "given, or which one holds pictures or their paths, texts, or arrays."
        )
    made_of["labels"] = columns.labels
    for key, names in {**made_of, "classes": columns.classes or ()}.items():
        if twice := next((name for name in names if names.count(name) > 1), None):
            each = "class" if key == "classes" else "column"
            return f"data.columns.{key}", f"data.columns.{key} names {twice!r} twice. Name each {each} once."
    for (key, names), (other, others) in combinations(made_of.items(), 2):
        if both := next((name for name in names if name in others), None):
            return f"data.columns.{other}", (
                f"data.columns has {both!r} in {key} and in {other}. Remove it from one of them."
            )
    if odd := next((name for name in columns.categories if name not in columns.inputs), None):
        return "data.columns.categories", f"data.columns.categories has {odd!r}, which is not in inputs. Fix its name."
    if columns.classes is not None and len(columns.labels) != 1:
        return "data.columns.classes", (
            f"data.columns.classes is set, and there are {len(columns.labels)} label columns. It is for one: leave it "
            "out."
        )
    return None


def _meaning(teachers: TeacherSettings, task: type[Task], at: str) -> tuple[str, str] | None:
    """Contradictions in the meaning of the members' outputs; `at` is the table that states it."""
    if teachers.output not in task.outputs:
        return f"{at}.output", (
            f"{at}.output is {teachers.output!r}, and the task is {task.key}. Set it to what the members return: "
            f"{_one_of(task.outputs)}."
        )
    if teachers.output == "mean" and teachers.variance is None:
        return f"{at}.variance", (
            f'{at}.output is "mean", so how far targets lie from it is unknown. Set {at}.variance to the '
            "members' mean squared error on rows they were not trained on, in the target's unit squared; of several "
            "targets a list."
        )
    if teachers.output != "mean" and teachers.variance is not None:
        return f"{at}.variance", (
            f"{at}.variance is {_shown(teachers.variance)}, but {at}.output is {teachers.output!r}. Leave the variance "
            'out; it is for members that return a "mean" alone.'
        )
    if teachers.standardized is not None and not task.standardizes:
        return f"{at}.standardized", f"{at}.standardized is set, and the task is {task.key}. Leave it out."
    return None


def _of_tables(teachers: TeacherSettings, task: type[Task]) -> tuple[str, str] | None:
    """Contradictions in each table of `teachers.members`, with the values it inherits from `[teachers]`."""
    for pattern, table in teachers.members.items():
        at = of_members(pattern)
        if told := _meaning(teachers.of_pattern(pattern), task, at):
            return told
        if table.classes is not None and not task.named:
            return f"{at}.classes", f"{at}.classes is set, and outputs for {task.key} go by no names. Leave it out."
        if table.weight is not None and teachers.weights is not None:
            return f"{at}.weight", (
                f"{at}.weight is {table.weight:g}, and teachers.weights lists {list(teachers.weights)} for all "
                "members. Leave one of them out."
            )
    return None


def _shown(value: float | tuple[float, ...]) -> float | list[float]:
    """The value as a settings file spells it."""
    return list(value) if isinstance(value, tuple) else value


def _one_of(words: tuple[str, ...]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"
