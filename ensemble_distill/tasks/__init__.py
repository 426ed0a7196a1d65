"""What the answer of a row is, a task a file, whose name is the key of `task = "…"`: `multi_label.py` is "multi-label".

A module here whose `TASK` is a class of `Task` is a task. Nothing here imports torch before it is asked about tensors.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from ensemble_distill.tasks.task import Task

__all__ = ["Task", "open_task", "task_from_json", "task_names"]


@cache
def _tasks() -> dict[str, type[Task]]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.TASK.key: module.TASK for module in modules if hasattr(module, "TASK")}


def task_names() -> tuple[str, ...]:
    """The key of every task, in alphabetical order."""
    return tuple(sorted(_tasks()))


def open_task(key: str) -> type[Task]:
    """The task of that key, whose classes or targets are still to be found. Raises ValueError for no such key."""
    if key not in _tasks():
        raise ValueError(f"{key!r} is no task of {', '.join(task_names())}")
    return _tasks()[key]


def task_from_json(record: Mapping[str, Any]) -> Task:
    """Inverse of `Task.to_json`; other keys are passed over. Raises ValueError or KeyError for what it never wrote."""
    return open_task(record["task"]).from_json(record)
