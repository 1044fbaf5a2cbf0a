"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from qdeploy.errors import QdeployError
from qdeploy.scores import Score
from qdeploy.tasks.counted import CountedShare
from qdeploy.tasks.distillation import distillation_loss
from qdeploy.tasks.task import Task, shape_of


class Segmentation(Task):
    """Logits [N, classes, H, W] and masks [N, H, W] of class numbers.

    ignore_index     pixels of this number count nowhere
    dice             share (0..1) of the loss that 1 - Dice makes beside the cross entropy
    label_smoothing  of the training loss alone
    """

    decides = "pixel"
    output = "logits"
    least_classes = 2

    def __init__(
        self, ignore_index: int = 255, dice: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        if not 0 <= dice <= 1:
            raise QdeployError(f"task.options.dice is {dice}; it is a share of the loss, 0 to 1")
        self.ignore_index = ignore_index
        self.dice = dice
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets, 0.0)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets, self.label_smoothing)

    def _loss(self, logits: Tensor, masks: Tensor, smoothing: float) -> Tensor:
        if masks.is_floating_point():
            raise QdeployError(
                f"masks are {str(masks.dtype).removeprefix('torch.')}; give the number of each pixel's class "
                "as an integer. What makes floats of pixels, such as ToTensor, divides them by 255"
            )
        masks, ignored = masks.long(), self.ignore_index
        loss = cross_entropy(logits, masks, ignore_index=ignored, label_smoothing=smoothing)
        if not self.dice:
            return loss
        return (1 - self.dice) * loss + self.dice * (1 - soft_dice(logits, masks, ignored))

    def metrics(self, classes: int) -> Mapping[Score, Metric]:
        return {
            Score("miou", "mIoU"): MeanIoU(classes, self.ignore_index),
            Score("pixel_accuracy", "pixel accuracy"): CountedShare(
                partial(is_right, self.ignore_index)
            ),
        }

    def decision(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return distillation_loss(student, teacher)

    def misfit(self, outputs: Any, classes: int) -> str | None:
        if isinstance(outputs, Tensor) and outputs.ndim == 4 and outputs.shape[1] == classes:
            return None
        return (
            f"gives {shape_of(outputs)} for 2 inputs, and there are {classes} classes, so it must give "
            f"[2, {classes}, height, width]"
        )


class MeanIoU(MulticlassJaccardIndex):
    """The mean over the classes that occur of intersection / union, over all pixels of the data set."""

    def __init__(self, classes: int, ignore_index: int) -> None:
        super().__init__(classes, ignore_index=ignore_index, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.argmax(1), target.long())


def is_right(ignored: int, logits: Tensor, masks: Tensor) -> Tensor:
    """Whether the class of each pixel is the right one; what is ignored is left out."""
    counted = masks != ignored
    return (logits.argmax(1) == masks)[counted]


def soft_dice(logits: Tensor, masks: Tensor, ignored: int) -> Tensor:
    """2 |P and T| / (|P| + |T|), the mean over the classes, with P the probabilities (V-Net, 1606.04797).

    logits [N, C, H, W], masks int64 [N, H, W]
    """
    counted = (masks != ignored)[:, None]
    truth = one_hot(masks.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    share = logits.softmax(1) * counted
    both, each = (share * truth).sum((0, 2, 3)), (share + truth).sum((0, 2, 3))
    return torch.mean((2 * both + 1e-6) / (each + 1e-6))


TASK = Segmentation
