"""Classification: one class for each input."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from qdeploy.scores import TOP1, TOP5, Score
from qdeploy.tasks.counted import CountedShare
from qdeploy.tasks.distillation import distillation_loss
from qdeploy.tasks.task import Task, shape_of

ERROR1 = Score("error1", "top-1 error", higher_is_better=False, shown=False)


class Classification(Task):
    """Logits [N, classes] and the number of the right class of each, [N].

    label_smoothing  of the training loss alone
    """

    decides = "image"
    output = "logits"
    least_classes = 2

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def metrics(self, classes: int) -> Mapping[Score, Metric]:
        found: dict[Score, Metric] = {TOP1: CountedShare(is_right)}
        if classes > 5:
            found[TOP5] = CountedShare(partial(is_among_first, 5))
        return found | {ERROR1: CountedShare(is_wrong)}

    def decision(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return distillation_loss(student, teacher)

    def misfit(self, outputs: Any, classes: int) -> str | None:
        if isinstance(outputs, Tensor) and outputs.shape == (2, classes):
            return None
        return (
            f"gives {shape_of(outputs)} for 2 inputs, and there are {classes} classes, so it must give "
            f"[2, {classes}]: set model.options, such as num_classes = {classes}"
        )


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the likeliest class is the right one: bool [N]. Of equals the first is likelier."""
    return logits.argmax(1) == labels


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1) != labels


def is_among_first(count: int, logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the right class is among the `count` likeliest: bool [N]. Of equals the first is likelier."""
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    likelier = (logits > own) | (before & (logits == own))
    return likelier.sum(1) < count


TASK = Classification
