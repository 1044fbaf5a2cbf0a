"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from qdeploy.scores import Score as Score


def shape_of(outputs: Any) -> str:
    """As "[2, 10]", or the type of what is no tensor."""
    return str(list(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__


class Task(ABC):
    """What a network is for: what it learns from, what it is judged by, when two outputs agree.

    A subclass has a loss and metrics, and is `[task] kind = "file.py:Class"` of a recipe; the keys of
    [task.options] are the keyword arguments of its __init__. Outputs are what the network gives: a
    tensor, or a tuple, list or dict of tensors. Targets are what the data set gives beside the inputs,
    as a DataLoader collates it.

    decides   what `decision` decides on, such as "image": agreement is the share of those. None:
              outputs are values, and agree by their signal-to-noise ratio alone
    output    what a single output is called in the file
    least_classes   how many the data set must name
    """

    decides: ClassVar[str | None] = None
    output: ClassVar[str] = "output"
    least_classes: ClassVar[int] = 0

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over a batch, a scalar."""

    @abstractmethod
    def metrics(self, classes: int) -> Mapping[Score, Metric]:
        """New metrics, all at their start, by what they measure; the headline comes first.

        classes   how many the data set names, 0 if none

        Each is updated with (outputs, targets), of all processes in the end. A metric that computes a
        dict of numbers may stand under several scores, whose names are keys of the dict.
        """

    def shown_scores(self, classes: int) -> tuple[Score, ...]:
        """What reports show of the metrics, the headline first."""
        return tuple(score for score in self.metrics(classes) if score.shown)

    def training_loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss that is minimised, where it is not the one that is reported."""
        return self.loss(outputs, targets)

    def decision(self, outputs: Any) -> Tensor | None:
        """What a user acts on, as integers [N, ...]: the class of each image, or of each pixel."""
        return None

    def distillation(self, student: Any, teacher: Any) -> Tensor:
        """How far the outputs are from those of the float network: their mean square difference."""
        pairs = zip(pytree.tree_leaves(student), pytree.tree_leaves(teacher), strict=True)
        return torch.stack([mse_loss(one, other) for one, other in pairs]).mean()

    def misfit(self, outputs: Any, classes: int) -> str | None:
        """Why outputs for two inputs cannot be of this task, in a sentence; None: they can."""
        return None
