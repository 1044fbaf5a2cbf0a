"""What the activation quantizers share that learn one number: where it starts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer, MovingRange


class StartsFromData(ActivationQuantizer):
    """A quantizer of one learned number, [1], which starts from data.

    It starts from the first batch of training whose values are finite, or from the mean over
    calibration batches if there were some before. Once it learns, calibration leaves it alone.

    A subclass has it as a parameter that is 0, names it in `learned` and writes `start_of`.

    seen       0 before there is a start, then 1. The number is read divided by it, so that a copy
               that averages states (EMA) from the start on has the average of the numbers
    batches    how many batches the start is the mean of
    left_out   how many it is not, since they had values that are not finite
    learning   whether training has begun
    """

    flags = ("seen", "learning")
    seen: Tensor
    batches: Tensor
    left_out: Tensor
    learning: Tensor

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("left_out", torch.zeros((), dtype=torch.int64))
        self.register_buffer("learning", torch.zeros((), dtype=torch.bool))

    @property
    @abstractmethod
    def learned(self) -> nn.Parameter:
        """The parameter, [1]."""

    @abstractmethod
    def start_of(self, x: Tensor) -> Tensor:
        """Where the number would start by this batch of all processes; nan or inf if x has some."""

    def number(self) -> Tensor:
        """The learned number, a scalar with a gradient; 0 before there is a start."""
        return (self.learned / self.seen.clamp(min=torch.finfo(self.seen.dtype).tiny)).squeeze(0)

    @property
    def observing(self) -> bool:
        return not self.is_set("learning")

    @property
    def has_range(self) -> bool:
        """In compiled training without asking: it has just seen a batch."""
        return (self.training and torch.compiler.is_compiling()) or self.is_set("seen")

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if self.calibrating or not self.is_set("seen"):
            self._take_in(x)
        if not self.calibrating:
            self.learning.copy_(self.seen > 0)

    def observe_nothing(self, x: Tensor) -> None:
        self.observe(x)

    def _take_in(self, x: Tensor) -> None:
        if processes.uneven():
            raise QdeployError(
                "the first batch of all processes starts what this method learns of activations, and inside "
                "of Join some may have none; call qdeploy.calibrate(prepared, batches) before the training"
            )
        if processes.sharded(self.learned):
            raise QdeployError(
                "what this method learns of activations starts from data, and FSDP would lose the start: "
                "call qdeploy.calibrate(prepared, batches) before FSDP shards the network"
            )
        start = self.start_of(x)
        # Compiled code may not know that there is a start already.
        wanted = (self.seen == 0) | self.calibrating
        finite = start.abs() < torch.inf
        taken = wanted & finite
        self.batches += taken
        self.left_out += wanted & ~finite
        weight = torch.where(taken, 1 / self.batches, 0.0)
        start = torch.where(taken, start, 0.0)
        self.learned.add_(weight * (start - self.learned))
        self.seen.add_(weight * (1 - self.seen))

    def reset(self) -> None:
        if self.observing:
            for start in (self.learned.detach(), self.seen, self.batches, self.left_out):
                start.zero_()

    def share(self) -> None:
        if self.observing:
            processes.pool([self.learned.detach(), self.seen], self.batches)
            self.left_out.copy_(processes.total(self.left_out))


# Quantizers that need data, and count what they have seen.
MEASURING = (MovingRange, StartsFromData)
