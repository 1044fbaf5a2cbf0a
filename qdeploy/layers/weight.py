"""The weight quantizer: a latent parameter, what training multiplies by, and what ships."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.grid import Grid, QTensor
from qdeploy.grid import per_channel as per_channel  # where methods of other packages look for it
from qdeploy.layers.fake_quantize import straight_through
from qdeploy.layers.precision import in_float32
from qdeploy.layers.transparent import MayBeTransparent


def signs(values: Tensor) -> Tensor:
    """-1.0 or 1.0; 1.0 of 0."""
    return torch.where(values >= 0, 1.0, -1.0)


class WeightQuantizer(MayBeTransparent, nn.Module, ABC):
    """Searches for the integers of one layer's weight.

    A method subclasses it and writes two functions of the latent parameter. In evaluation mode
    the layer multiplies by the collapsed weight: what is evaluated is what is shipped.

    latent      the parameter that trains: made by the method in its `__init__`, and from `belong_to`
                on the `weight` of the layer, under the name that the float network has for it
    origin      the float weight [out, ...] that it was made of, where `latent` is something else
    remake      makes another one like it of a float weight [out, ...]; `prepare` sets both
    committed   whether the codes are final: `relax` gives the latent no gradient any more
    decays      weight decay of its own parameters by name, where the rule of `parameter_groups` is not meant
    """

    grid: Grid
    latent: nn.Parameter
    origin: Tensor | None = None  # no buffer: only the check of `prepare` and tests need it
    remake: Callable[[Tensor], WeightQuantizer]
    layer: nn.Module
    committed = False
    decays: Mapping[str, float] = {}

    def belong_to(self, layer: nn.Module) -> None:
        """Hands the latent parameter to a layer; of several, which share it, the last is asked for it."""
        layer.weight = self.latent
        self._parameters.pop("latent", None)
        self.__dict__["layer"] = layer  # no child: it is the layer that holds the quantizer

    def __getattr__(self, name: str) -> Any:
        if name == "latent" and "layer" in self.__dict__:
            return self.layer.weight
        return super().__getattr__(name)

    @abstractmethod
    def relax(self, latent: Tensor) -> Tensor:
        """What training multiplies by, differentiable, [out, ...]."""

    @abstractmethod
    def collapse(self, latent: Tensor) -> QTensor:
        """The codes and scale that ship."""

    @in_float32
    def forward(self, gain: Tensor | None = None) -> Tensor:
        """The weight [out, ...]; `gain` [out] multiplies the latent first (BatchNorm folding)."""
        if self.transparent:
            return self._unrounded(gain)
        latent = self.scaled_latent(gain)
        return self.relax(latent) if self.training else self.collapse(latent).dequantize()

    def scaled_latent(self, gain: Tensor | None) -> Tensor:
        return self.latent if gain is None else self.latent * per_channel(gain, self.latent)

    def _unrounded(self, gain: Tensor | None) -> Tensor:
        latent = self.scaled_latent(gain)
        if self.origin is None:
            return latent
        weight = self.origin.to(latent)
        weight = weight if gain is None else weight * per_channel(gain, weight)
        return straight_through(weight, self.relax(latent))

    def float_weight(self, gain: Tensor | None = None) -> Tensor | None:
        """The float weight [out, ...] that is rounded, times `gain` [out]; None if there is none.

        Bias correction compares with it. A method that searches for something else has none.
        """
        return None

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0; methods with a schedule override it."""

    def progress(self) -> dict[str, float]:
        """Where the method's schedule stands, {name of a value: value}; a column of metrics.csv."""
        return {}

    @property
    def searching(self) -> bool:
        """True while `relax` still differs from what ships beyond a straight-through rounding."""
        return False


def __getattr__(name: str) -> Any:
    if name == "Collapsed":
        raise ImportError(
            "qdeploy.layers.weight.Collapsed is gone: import QTensor from qdeploy.grid and let collapse "
            "return QTensor.symmetric(codes, scale, self.grid) or QTensor(codes, scale, zero, self.grid)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
