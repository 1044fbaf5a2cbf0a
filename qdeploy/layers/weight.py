"""The weight quantizer: a latent parameter, what training multiplies by, and what ships."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdeploy.grid import Grid
from qdeploy.layers.precision import in_float32


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values [out] shaped to broadcast over like [out, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def signs(values: Tensor) -> Tensor:
    """-1.0 or 1.0; 1.0 of 0."""
    return torch.where(values >= 0, 1.0, -1.0)


class Collapsed(NamedTuple):
    """A weight as it ships: value = (codes - zero) * scale.

    codes  int8 [out, ...]; int16 where the grid does not fit int8
    scale  float32 [out], positive
    zero   [out], of the codes' type
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def symmetric(cls, codes: Tensor, scale: Tensor, grid: Grid) -> Collapsed:
        """Codes [out, ...] of any type whose zero is 0, and one scale or one for each channel."""
        stored = codes.to(getattr(torch, grid.storage.name))
        return cls(stored, scale.expand(len(stored)), stored.new_zeros(len(stored)))

    def dequantize(self) -> Tensor:
        """float32 [out, ...], bitwise what QTensor.dequantize and ONNX DequantizeLinear give."""
        centred = self.codes.to(torch.int32) - per_channel(self.zero, self.codes).to(torch.int32)
        return centred.to(torch.float32) * per_channel(self.scale, self.codes)


class WeightQuantizer(nn.Module, ABC):
    """Searches for the integers of one layer's weight.

    A method subclasses it and writes two functions of the latent parameter:

    relax(latent)     what training multiplies by, differentiable, [out, ...]
    collapse(latent)  the codes and scale that ship

    In evaluation mode the layer multiplies by the collapsed weight: what is evaluated is what
    is shipped.
    """

    grid: Grid
    latent: nn.Parameter

    @abstractmethod
    def relax(self, latent: Tensor) -> Tensor: ...

    @abstractmethod
    def collapse(self, latent: Tensor) -> Collapsed: ...

    @in_float32
    def forward(self, gain: Tensor | None = None) -> Tensor:
        """The weight [out, ...]; `gain` [out] multiplies the latent first (BatchNorm folding)."""
        latent = self.scaled_latent(gain)
        return self.relax(latent) if self.training else self.collapse(latent).dequantize()

    def scaled_latent(self, gain: Tensor | None) -> Tensor:
        return self.latent if gain is None else self.latent * per_channel(gain, self.latent)

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0; methods with a schedule override it."""

    def progress(self) -> dict[str, float]:
        """Where the method's schedule stands, {name of a value: value}; a column of metrics.csv."""
        return {}

    @property
    def searching(self) -> bool:
        """True while `relax` still differs from what ships beyond a straight-through rounding."""
        return False
