"""The names of tasks: the modules of this package and the entry points of others. No torch is needed."""

from qdeploy.extensions import Extensions

_HELPERS = frozenset({"counted", "distillation", "loading", "registry", "tally", "task"})
TASKS = Extensions("task", type, "qdeploy.tasks", "TASK", _HELPERS, joint="-")
available = TASKS.names
