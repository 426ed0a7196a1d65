"""What the answer of a row is: one task per file, named after its key, so `multi_label.py` is `task = "multi-label"`.

A module here defines a task by naming its subclass of `Task` `TASK`. Nothing here imports torch until a function that
handles tensors is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ensemble_distill.runtime.registry import Registry
from ensemble_distill.tasks.task import Task

__all__ = ["Task", "open_task", "task_from_json", "task_names"]


_TASKS = Registry(__name__, "TASK")


def task_names() -> tuple[str, ...]:
    """The keys of all tasks, in alphabetical order."""
    return _TASKS.keys


def open_task(key: str) -> type[Task]:
    """The task class with that key, without classes or targets. Raises ValueError for an unknown key."""
    if key not in _TASKS:
        raise ValueError(f"{key!r} is not a task of {', '.join(task_names())}")
    return cast(type[Task], _TASKS[key].TASK)


def task_from_json(record: Mapping[str, Any]) -> Task:
    """Inverse of `Task.to_json`; ignores other keys. Raises ValueError for a record that it did not write."""
    task, classes = record.get("task"), record.get("classes")
    if not isinstance(task, str):
        raise ValueError(f"task is {task!r}, and not one of {', '.join(task_names())}")
    if not isinstance(classes, list | tuple):
        raise ValueError(f"classes is {classes!r}, and not a list")
    return open_task(task).from_json(record)
