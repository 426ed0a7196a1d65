"""What the answer of a row is, a task a file, whose name is the key of `task = "…"`: `multi_label.py` is "multi-label".

A module here whose `TASK` is a class of `Task` is a task. Nothing here imports torch before it is asked about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ensemble_distill.runtime.registry import Registry
from ensemble_distill.tasks.task import Task

__all__ = ["Task", "open_task", "task_from_json", "task_names"]


_TASKS = Registry(__name__, "TASK")


def task_names() -> tuple[str, ...]:
    """The key of every task, in alphabetical order."""
    return _TASKS.keys


def open_task(key: str) -> type[Task]:
    """The task of that key, whose classes or targets are still to be found. Raises ValueError for no such key."""
    if key not in _TASKS:
        raise ValueError(f"{key!r} is not a task of {', '.join(task_names())}")
    return cast(type[Task], _TASKS[key].TASK)


def task_from_json(record: Mapping[str, Any]) -> Task:
    """Inverse of `Task.to_json`; other keys are passed over. Raises ValueError for what it never wrote."""
    task, classes = record.get("task"), record.get("classes")
    if not isinstance(task, str):
        raise ValueError(f"task is {task!r}, and not one of {', '.join(task_names())}")
    if not isinstance(classes, list | tuple):
        raise ValueError(f"classes is {classes!r}, and not a list")
    return open_task(task).from_json(record)
