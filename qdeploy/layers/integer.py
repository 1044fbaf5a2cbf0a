"""The layers of a converted network: integers, as the ONNX file holds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.grid import Grid, QTensor
from qdeploy.layers import operators
from qdeploy.layers.bias import rounded_to_keep_codes, spread_factor, with_room_for_bias
from qdeploy.layers.fake_quantize import SIGN_STEP
from qdeploy.layers.product import Product


class IntegerActivation(nn.Module):
    """Scale, zero point and grid of one activation tensor.

    saturates   False for values that are on the grid already
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor, grid: Grid, saturates: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.saturates = saturates
        storage = torch.uint8 if grid.highest <= 255 else torch.uint16
        self.register_buffer("scale", scale.detach().to(torch.float32).cpu().clone())
        self.register_buffer("zero", zero.detach().to(storage).cpu().clone())

    def forward(self, x: Tensor) -> Tensor:
        everything = 0, torch.iinfo(self.zero.dtype).max
        low, high = (self.grid.lowest, self.grid.highest) if self.saturates else everything
        result: Tensor = operators.quantize_dequantize(x, self.scale, self.zero, low, high)
        return result

    @property
    def step(self) -> tuple[float, int]:
        """Scale and zero point."""
        return self.scale.item(), int(self.zero.item())

    @property
    def has_8_bits(self) -> bool:
        """Whether its codes are uint8, which integer kernels take, and not uint16."""
        return self.zero.dtype == torch.uint8

    def thresholds(self, rectified: bool) -> Tensor:
        """Where the code changes, float64 [n]; behind a ReLU only those of positive values."""
        scale, zero = self.step
        lowest = max(zero, self.grid.lowest) if rectified else self.grid.lowest
        codes = torch.arange(lowest, self.grid.highest, dtype=torch.float64)
        return scale * (codes + 0.5 - zero)

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():.6g}, zero={self.zero.item()}, grid={self.grid}"


class IntegerSign(IntegerActivation):
    """-1 and +1 as codes around a zero point."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = operators.sign(x)
        return result

    def thresholds(self, rectified: bool) -> Tensor:
        return torch.tensor([-SIGN_STEP / 2], dtype=torch.float64)  # as sign_of has it


class IntegerLayer(nn.Module):
    """A Conv or Linear of int8 (or int16) codes and, for an integer kernel, an int32 bias.

    source      the quantizer of what it reads; None where no integer kernel takes both
    thresholds  where the code of the quantizer behind it changes, float64 [n]; None if there is none
    grid        the codes that the weight may take, before they are multiplied by `spread`
    in_rows     whether an input [..., in] is taken as [rows, in]
    bias        counts steps of input scale x weight scale, see bias.py; float32 without a source
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor
    bias_scale: Tensor
    bias_zero: Tensor

    def __init__(
        self,
        kind: str,
        product: Product,
        weight: QTensor,
        bias: Tensor,
        source: IntegerActivation | None,
        thresholds: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.product = product
        self.in_rows = product.channel_axis == -1
        self.grid = weight.grid
        self.in_integers = source is not None
        self.spread = 1
        if source is not None:
            self.spread = spread_factor(weight, source.grid.highest)
            weight = with_room_for_bias(weight.spread(self.spread), bias, source.step[0])
        for name, part in (("codes", weight.codes), ("scale", weight.scale), ("zero", weight.zero)):
            self.register_buffer(name, part.contiguous())
        if source is None:
            self.register_buffer("bias", bias.to(torch.float32))
            return
        self.register_buffer("bias_scale", self.scale * source.scale)
        step = self.bias_scale.to(torch.float64)
        codes = bias.to(torch.float64) / step
        if thresholds is not None and self.spread > 1:
            codes = rounded_to_keep_codes(codes, thresholds / step[:, None], self.spread)
        self.register_buffer("bias", codes.round().to(torch.int32))
        self.register_buffer("bias_zero", torch.zeros_like(self.bias))

    def forward(self, x: Tensor) -> Tensor:
        weight = operators.dequantize(self.codes, self.scale, self.zero)
        bias = self.bias
        if self.in_integers:
            bias = operators.dequantize(self.bias, self.bias_scale, self.bias_zero)
        if self.in_rows and x.ndim > 2:
            # As a product of matrices: ONNX Runtime adds the bias in integers in QGemm alone.
            rows = self.product(x.flatten(0, -2), weight, bias)
            return rows.unflatten(0, x.shape[:-1])
        return self.product(x, weight, bias)

    def extra_repr(self) -> str:
        bias = "int32" if self.in_integers else "float32"
        return f"{self.kind}, {self.product}, weight={self.grid}, bias={bias}"


class IntegerNorm(IntegerLayer):
    """A BatchNorm as a convolution of one weight a channel: nothing of it was rounded but its bias."""
