"""What a layer does with a weight, apart from the weight: convolve or multiply.

In mixed precision the products are what runs in 16 bits; what they give is float32 again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.layers.precision import widened


class Product(Protocol):
    """What a layer computes of x, its weight [out, ...] and its bias [out]."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    @property
    def shipped(self) -> Product:
        """The product without what only training needs, such as a gradient of its own."""


@dataclass(frozen=True)
class Convolution:
    """x [N, in, ...] with weight [out, in / groups, ...] and bias [out]."""

    dimensions: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    border: tuple[int, ...]

    @property
    def shipped(self) -> Convolution:
        return self

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: tuple[int, ...] | str = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.border, mode=self.padding_mode), (0,) * self.dimensions
        convolve = F.conv1d if self.dimensions == 1 else F.conv2d
        y = convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return widened(y)

    def __repr__(self) -> str:
        return (
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}"
            + ("" if self.padding_mode == "zeros" else f", {self.padding_mode}")
        )


@dataclass(frozen=True)
class MatrixProduct:
    """x [..., in] with weight [out, in] and bias [out]."""

    @property
    def shipped(self) -> MatrixProduct:
        return self

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return widened(F.linear(x, weight, bias))

    def __repr__(self) -> str:
        return "linear"


PlainProduct = Convolution | MatrixProduct
WeightLayer = nn.Conv1d | nn.Conv2d | nn.Linear


def product_of(layer: WeightLayer) -> PlainProduct:
    """The product of a float layer, without its weight."""
    if isinstance(layer, nn.Linear):
        return MatrixProduct()
    return Convolution(
        dimensions=layer.weight.ndim - 2,
        stride=tuple(layer.stride),
        padding=layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        border=tuple(layer._reversed_padding_repeated_twice),
    )
