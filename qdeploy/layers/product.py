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

    @classmethod
    def depthwise(cls, channels: int, dimensions: int) -> Convolution:
        """One weight a channel: y = x * weight + bias."""
        one, nothing = (1,) * dimensions, (0,) * dimensions
        return cls(dimensions, one, nothing, one, channels, "zeros", nothing * 2)

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
class TransposedConvolution:
    """x [N, in, H, W] with weight [out, in / groups, ...] and bias [out].

    The weight is turned: output channels first, as everywhere, not as nn.ConvTranspose2d has it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]

    @property
    def shipped(self) -> TransposedConvolution:
        return self

    @property
    def tiles(self) -> bool:
        """Whether each input pixel makes a square of output pixels of its own: kernel = stride."""
        plain = not any(self.padding) and not any(self.output_padding) and self.groups == 1
        return plain and self.kernel == self.stride == (self.stride[0],) * 2

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = turned(weight, self.groups)
        convolve = F.conv_transpose1d if weight.ndim == 3 else F.conv_transpose2d
        y = convolve(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )  # fmt: skip
        return widened(y)


def turned(weight: Tensor, groups: int) -> Tensor:
    """From [in, out / groups, ...] to [out, in / groups, ...], or back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class TiledConvolution:
    """A pointwise convolution to [N, out * size * size, H, W], whose values are laid out in squares."""

    size: int

    @property
    def shipped(self) -> TiledConvolution:
        return self

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, weight, bias), self.size)


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


PlainProduct = Convolution | TransposedConvolution | MatrixProduct
TransposedLayer = nn.ConvTranspose1d | nn.ConvTranspose2d
WeightLayer = nn.Conv1d | nn.Conv2d | TransposedLayer | nn.Linear
# The layers of torch that may be quantized.
WEIGHT_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)


def product_of(layer: WeightLayer) -> PlainProduct:
    """The product of a float layer, without its weight."""
    if isinstance(layer, nn.Linear):
        return MatrixProduct()
    if isinstance(layer, TransposedLayer):
        return TransposedConvolution(
            tuple(layer.kernel_size), tuple(layer.stride), tuple(layer.padding),  # type: ignore[arg-type]
            tuple(layer.output_padding), layer.groups, tuple(layer.dilation),
        )  # fmt: skip
    return Convolution(
        dimensions=layer.weight.ndim - 2,
        stride=tuple(layer.stride),
        padding=layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        border=tuple(layer._reversed_padding_repeated_twice),
    )


def weight_of(layer: WeightLayer) -> Tensor:
    """The weight with the output channels first."""
    return (
        turned(layer.weight, layer.groups) if isinstance(layer, TransposedLayer) else layer.weight
    )
