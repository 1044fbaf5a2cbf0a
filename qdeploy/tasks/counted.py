"""Metrics that are shares of what was counted: exact, since they keep integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CountedShare(Metric):
    """The share of what is right, of all that was counted.

    right   (outputs, targets) -> bool of any shape
    """

    full_state_update = False
    hits: Tensor
    counted: Tensor

    def __init__(self, right: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.right = right
        self.add_state("hits", torch.zeros((), dtype=torch.int64), "sum")
        self.add_state("counted", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, outputs: Any, targets: Any) -> None:
        right = self.right(outputs, targets)
        self.hits += right.sum()
        self.counted += right.numel()

    def compute(self) -> Tensor:
        return self.hits.double() / self.counted
