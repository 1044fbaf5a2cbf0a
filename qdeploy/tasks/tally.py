"""The loss and the scores of a network, counted batch by batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.scores import Score
from qdeploy.tasks.task import Task, shape_of

LOSS = "loss"  # what its figure is called among the scores


class Scoring:
    """The scores of outputs, counted on their device: nothing waits for it until `values` is asked."""

    def __init__(self, task: Task, classes: int) -> None:
        self.metrics = named(task.metrics(classes))

    def update(self, outputs: Any, targets: Any) -> None:
        device = pytree.tree_leaves(outputs)[0].device
        for metric in {id(metric): metric for metric in self.metrics.values()}.values():
            if metric.device != device:
                metric.to(device)
            metric.update(outputs, targets)

    def values(self) -> dict[str, float]:
        """{score: value}, of all processes. Errors: QdeployError for what is no number."""
        found = self.numbers()
        for name, value in found.items():
            if math.isnan(value):
                raise QdeployError(
                    f"the metric {name} is nan, so nothing can be judged by it; mend it, or the targets "
                    "that it is given"
                )
        return found

    def numbers(self) -> dict[str, float]:
        """{score: value}, nan where nothing can be said. Errors: QdeployError for what is not one number."""
        return {name: number(name, metric.compute()) for name, metric in self.metrics.items()}


def number(name: str, computed: Any) -> float:
    """What a metric computed; of one that computes several in a dict, that of the score's name.

    Errors: QdeployError for anything but one number.
    """
    if isinstance(computed, Mapping) and name in computed:
        computed = computed[name]
    if isinstance(computed, Mapping):
        given = f"the numbers {', '.join(map(str, computed))}; call the score like one of these"
    elif isinstance(computed, Tensor) and computed.numel() != 1:
        given = f"{shape_of(computed)}; take a mean over classes or positions, or another metric"
    elif isinstance(computed, Tensor | float | int):
        return float(computed)
    else:
        given = f"{type(computed).__name__}; it must compute one number, or a dict of them"
    raise QdeployError(f"the metric of the score {name!r} computes {given}")


def named(metrics: Mapping[Score, Metric]) -> dict[str, Metric]:
    """Errors: QdeployError for no metrics, for keys that are no Score, and for a name that is taken."""
    odd = [key for key in metrics if not isinstance(key, Score)]
    if odd or not metrics:
        given = f"{odd[0]!r} as a key" if odd else "no metrics"
        raise QdeployError(
            f"the task's metrics() returned {given}; it must return {{Score(name, title, unit): metric}}"
        )
    names = Counter([LOSS, *(score.name for score in metrics)])
    if twice := [name for name, count in names.items() if count > 1]:
        raise QdeployError(
            f"the task has two figures called {twice[0]!r}; each score needs a name of its own, and "
            f"{LOSS!r} is that of the loss"
        )
    return {score.name: metric for score, metric in metrics.items()}


class Tally:
    """The loss and the scores of an epoch."""

    def __init__(self, task: Task, classes: int) -> None:
        self.scoring = Scoring(task, classes)
        self._loss: Tensor | None = None
        self.samples = 0

    def add(self, loss: Tensor, outputs: Any, targets: Any, samples: int) -> None:
        """A batch of `samples` and its mean loss."""
        self.scoring.update(pytree.tree_map(torch.Tensor.detach, outputs), targets)
        loss = loss.detach().double() * samples
        self._loss = loss if self._loss is None else self._loss + loss
        self.samples += samples

    def figures(self) -> dict[str, float]:
        """{"loss": mean, score: value}, of all processes. Errors: QdeployError for no samples."""
        summed = 0.0 if self._loss is None else float(self._loss)
        total, samples = processes.totals([summed, self.samples])
        if not samples:
            raise QdeployError("there is nothing to evaluate on: the data set is empty")
        return {LOSS: total / samples, **self.scoring.values()}


def contiguous(outputs: Any) -> Any:
    """The outputs in rows, as networks give them that are not stored channels last.

    Losses and metrics may view their values, and torchmetrics' own do.
    """
    return pytree.tree_map_only(Tensor, Tensor.contiguous, outputs)


def size_of(batch: Any) -> int:
    """How many samples a batch of inputs holds: the length of its first tensor."""
    return len(pytree.tree_leaves(batch)[0])
