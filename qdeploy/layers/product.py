"""What a layer does with a weight, apart from the weight: convolve or multiply.

A kind of layer is a row of PRODUCTS: all that differs from one kind to another is asked of the product.

In mixed precision the products are what runs in 16 bits; what they give is float32 again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from qdeploy.grid import QTensor
from qdeploy.layers.norm import over_channels
from qdeploy.layers.precision import widened

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Product(ABC):
    """What a layer computes of x, its weight [out, ...] and its bias [out].

    channel_axis         where the output channels are in what it gives
    has_integer_kernel   whether ONNX Runtime computes it on 8-bit codes
    reads_values         whether it multiplies what it reads, whose bits then count
    """

    channel_axis: ClassVar[int] = 1
    has_integer_kernel: ClassVar[bool] = True
    reads_values: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def over_outputs(self, values: Tensor, y: Tensor) -> Tensor:
        """values [out] shaped to broadcast over y, which it gives."""
        return values if self.channel_axis == -1 else over_channels(values, y)

    @property
    def shipped(self) -> Product:
        """The product without what only training needs, such as a gradient of its own."""
        return self

    def for_integer_kernel(self, weight: QTensor, bias: Tensor) -> tuple[Product, QTensor, Tensor]:
        """The product, weight and bias in a form that an integer kernel takes, where there is one."""
        return self, weight, bias


class PlainProduct(Product):
    """The product of a layer of torch."""

    @classmethod
    def of(cls, layer: Any) -> Self:
        """The product of a float layer, without its weight: its fields are attributes of the layer."""
        return cls(*(getattr(layer, field.name) for field in fields(cls)))  # type: ignore[arg-type]

    def with_output_channels_first(self, weight: Tensor) -> Tensor:
        """The layer's own weight as [out, ...]."""
        return weight


@dataclass(frozen=True)
class Convolution(PlainProduct):
    """x [N, in, ...] with weight [out, in / groups, ...] and bias [out]."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    border: tuple[int, ...]

    @classmethod
    def of(cls, layer: Any) -> Self:
        border = tuple(layer._reversed_padding_repeated_twice)
        return cls(
            layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode, border
        )

    @classmethod
    def depthwise(cls, channels: int, dimensions: int) -> Self:
        """One weight a channel: y = x * weight + bias."""
        one, nothing = (1,) * dimensions, (0,) * dimensions
        return cls(one, nothing, one, channels, "zeros", nothing * 2)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            x, plain = self.padded(x)
            return plain(x, weight, bias)
        convolve = CONVOLUTIONS[len(self.stride) - 1]
        y = convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return widened(y)

    @property
    def pads_by_zeros(self) -> bool:
        """Whether its padding is a number of zeros: no other border, and not "same"."""
        return self.padding_mode == "zeros" and not isinstance(self.padding, str)

    def padded(self, x: Tensor) -> tuple[Tensor, Self]:
        """x with its border around it, and the product that is left to do."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        unpadded = replace(self, padding=(0,) * len(self.stride), padding_mode="zeros")
        return F.pad(x, self.border, mode=mode), unpadded

    def __repr__(self) -> str:
        return (
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}"
            + ("" if self.padding_mode == "zeros" else f", {self.padding_mode}")
        )


@dataclass(frozen=True)
class TransposedConvolution(PlainProduct):
    """x [N, in, ...] with weight [out, in / groups, ...] and bias [out].

    The output channels come first, as in every product; nn.ConvTranspose has the inputs first.
    """

    has_integer_kernel = False

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]

    def with_output_channels_first(self, weight: Tensor) -> Tensor:
        return channels_swapped(weight, self.groups)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = channels_swapped(weight, self.groups)
        convolve = TRANSPOSED_CONVOLUTIONS[len(self.kernel_size) - 1]
        y = convolve(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )  # fmt: skip
        return widened(y)

    def for_integer_kernel(self, weight: QTensor, bias: Tensor) -> tuple[Product, QTensor, Tensor]:
        """As a pointwise convolution, where each input pixel has a square of outputs of its own."""
        size = self.stride[0]
        plain = not any(self.padding) and not any(self.output_padding) and self.groups == 1
        dense = set(self.dilation) == {1}
        if not plain or not dense or not self.kernel_size == self.stride == (size, size):
            return self, weight, bias
        each = size * size  # output pixels of an input pixel
        codes = weight.codes.permute(0, 2, 3, 1).reshape(len(weight.codes) * each, -1, 1, 1)
        scale, zero, bias = (
            part.repeat_interleave(each) for part in (weight.scale, weight.zero, bias)
        )
        return TiledConvolution(size), QTensor(codes, scale, zero, weight.grid), bias


def channels_swapped(weight: Tensor, groups: int) -> Tensor:
    """From [in, out / groups, ...] to [out, in / groups, ...], or back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class TiledConvolution(Product):
    """A pointwise convolution to [N, out * size * size, H, W], then [N, out, H * size, W * size].

    The size * size values that a channel has for an input pixel become a tile of its output pixels.
    """

    size: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, weight, bias), self.size)

    def over_outputs(self, values: Tensor, y: Tensor) -> Tensor:
        return super().over_outputs(values[:: self.size**2], y)


@dataclass(frozen=True)
class MatrixProduct(PlainProduct):
    """x [..., in] with weight [out, in] and bias [out]."""

    channel_axis = -1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return widened(F.linear(x, weight, bias))

    def __repr__(self) -> str:
        return "linear"


class RecurrentWeight(nn.Linear):
    """One matrix of a recurrent layer (recurrent.py), which multiplies by it in every step.

    kind   what that layer is: LSTM, GRU or RNN
    """

    def __init__(self, kind: str, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.kind = kind
        self.weight = as_parameter(weight)
        self.bias = None if bias is None else as_parameter(bias)  # type: ignore[assignment]


def as_parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


@dataclass(frozen=True)
class RecurrentProduct(MatrixProduct):
    """One factor of a recurrence, which runtimes compute in float whatever its input is."""

    has_integer_kernel = False
    reads_values = False

    def __repr__(self) -> str:
        return "recurrent"


@dataclass(frozen=True)
class Lookup(PlainProduct):
    """Rows of a table: x, indices of any shape, with weight [out, in] gives [..., in]."""

    has_integer_kernel = False
    reads_values = False
    channel_axis = -1

    padding_idx: int | None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(x, weight, self.padding_idx)

    def __repr__(self) -> str:
        return "lookup"


@dataclass(frozen=True)
class LowBitGradient(Product):
    """A plain product with a gradient of `grad_bits` bits, which only training needs; a method says where."""

    plain: PlainProduct
    grad_bits: int

    @property
    def shipped(self) -> PlainProduct:
        return self.plain

    def __repr__(self) -> str:
        return f"{self.plain}, grad_bits={self.grad_bits}"


# The layers of torch that may be quantized, and what each computes.
PRODUCTS: dict[type[nn.Module], type[PlainProduct]] = {
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.ConvTranspose1d: TransposedConvolution,
    nn.ConvTranspose2d: TransposedConvolution,
    nn.ConvTranspose3d: TransposedConvolution,
    nn.Linear: MatrixProduct,
    RecurrentWeight: RecurrentProduct,
    nn.Embedding: Lookup,
}
# Those that multiply what they read, so that a BatchNorm or a constant behind them folds into the weight.
WEIGHT_LAYERS = tuple(layer for layer, product in PRODUCTS.items() if product.reads_values)
# What a call of a function amounts to where parameters are its weight and its bias.
FUNCTIONS = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d, F.linear: nn.Linear}


def product_of(layer: nn.Module) -> PlainProduct:
    """The product of a float layer, without its weight."""
    return PRODUCTS[type(layer)].of(layer)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight with the output channels first."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return product_of(layer).with_output_channels_first(weight)
