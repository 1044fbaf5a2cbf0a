"""Multi-label classification: any number of classes for each input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from qdeploy.scores import Score
from qdeploy.tasks.task import Task, shape_of


class MultiLabel(Task):
    """Logits [N, classes] and targets of 0 and 1, [N, classes]. A class is found above logit 0."""

    decides = "label"
    output = "logits"
    least_classes = 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def metrics(self, classes: int) -> Mapping[Score, Metric]:
        return {
            Score("map", "mAP"): Precision(classes, validate_args=False),
            Score("f1", "F1"): F1(classes, validate_args=False),
        }

    def decision(self, outputs: Tensor) -> Tensor:
        return outputs > 0

    def misfit(self, outputs: Any, classes: int) -> str | None:
        if isinstance(outputs, Tensor) and outputs.shape == (2, classes):
            return None
        return (
            f"gives {shape_of(outputs)} for 2 inputs, and there are {classes} classes, so it must give "
            f"[2, {classes}]"
        )


class Precision(MultilabelAveragePrecision):
    """Average precision, the mean over the classes, of logits."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.sigmoid(), target.long())


class F1(MultilabelF1Score):
    """F1, the mean over the classes, of logits."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update((preds > 0).long(), target.long())


TASK = MultiLabel
