"""Finds tasks: the modules of this package, the entry points of others, and classes in files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdeploy.errors import QdeployError
from qdeploy.references import Reference
from qdeploy.tasks.registry import TASKS, available
from qdeploy.tasks.task import Task


def load_task(kind: str, options: Mapping[str, Any], copy: Path | None = None) -> Task:
    """The task of [task] kind, made with its options.

    copy    an earlier copy of the file in a file.py:Class, see Reference

    Errors: QdeployError if there is none, it is no Task, or does not take the options.
    """
    reference = task_reference(kind, copy)
    task = reference.called(options) if reference else _made(kind, TASKS.find(kind), options)
    if not isinstance(task, Task):
        raise QdeployError(
            f"task {kind!r} is {type(task).__name__}; it must be a subclass of qdeploy.tasks.Task"
        )
    return task


def task_reference(kind: str, copy: Path | None = None) -> Reference | None:
    """Where the class of a kind like "file.py:Class" is; None for one that has a name."""
    place, _, name = kind.rpartition(":")
    if not place or not name:
        return None
    forms = f"one of {', '.join(available())}, file.py:Class or package.module:Class"
    return Reference("task", kind, place, name, forms, copy)


def _made(kind: str, task: type, options: Mapping[str, Any]) -> object:
    allowed = list(inspect.signature(task).parameters)
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise QdeployError(
            f"unknown key task.options.{unknown[0]}. Task {kind} takes {', '.join(allowed) or 'none'}"
        )
    return task(**options)
