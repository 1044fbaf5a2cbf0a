"""Regression: numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss
from torchmetrics import MeanAbsoluteError, Metric, R2Score

from qdeploy.errors import QdeployError
from qdeploy.scores import Score
from qdeploy.tasks.task import Task, shape_of

LOSSES = {"l1": l1_loss, "l2": mse_loss}


class Regression(Task):
    """Values and targets of one shape, [N, ...].

    loss   "l2", the mean square difference, or "l1"
    unit   of the values, for reports
    """

    def __init__(self, loss: Literal["l1", "l2"] = "l2", unit: str = "") -> None:
        self.difference = loss_named(loss)
        self.unit = unit

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.difference(outputs, like(outputs, targets))

    def metrics(self, classes: int) -> Mapping[Score, Metric]:
        return {
            Score("mae", "MAE", self.unit, higher_is_better=False): MeanAbsoluteError(),
            Score("r2", "R2", ""): FlatR2(),
        }

    def misfit(self, outputs: Any, classes: int) -> str | None:
        return None if isinstance(outputs, Tensor) else f"gives {shape_of(outputs)}, no tensor"


class FlatR2(R2Score):
    """1 - residual / total sum of squares, of all values together.

    The total is a difference of two sums, which for values far from 0 float32 cannot tell apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.flatten().double(), target.flatten().double())


def like(outputs: Tensor, targets: Tensor) -> Tensor:
    """The targets in the outputs' type. Errors: QdeployError if shapes differ, which would be broadcast."""
    if outputs.shape != targets.shape:
        raise QdeployError(
            f"outputs are {list(outputs.shape)} and targets {list(targets.shape)}; give both the same shape, "
            "such as targets [N, 1] to a network that gives one value"
        )
    return targets.to(outputs.dtype)


def loss_named(name: str) -> Any:
    """Errors: QdeployError for another."""
    if name not in LOSSES:
        raise QdeployError(
            f"task.options.loss: given {name!r}, allowed: {', '.join(map(repr, LOSSES))}"
        )
    return LOSSES[name]


TASK = Regression
