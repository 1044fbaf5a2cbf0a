"""The layers of a converted network: integers, as the ONNX file holds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.errors import QdeployError
from qdeploy.grid import Grid, QTensor, per_channel
from qdeploy.layers import kernels, operators
from qdeploy.layers.bias import rounded_to_keep_codes, spread_factor, with_room_for_bias
from qdeploy.layers.exact_product import ExactProduct
from qdeploy.layers.fake_quantize import SIGN_STEP
from qdeploy.layers.kernels import Step
from qdeploy.layers.product import Product

INT32 = 2**31


class IntegerActivation(nn.Module):
    """Scale, zero point and grid of one activation tensor.

    saturates   False for values that are on the grid already
    rounded     whether what it reads stands on its step, since a kernel gave it
    """

    scale: Tensor
    zero: Tensor
    rounded = False

    def __init__(self, scale: Tensor, zero: Tensor, grid: Grid, saturates: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.saturates = saturates
        storage = torch.uint8 if grid.highest <= 255 else torch.uint16
        self.register_buffer("scale", scale.detach().to(torch.float32).cpu().clone())
        self.register_buffer("zero", zero.detach().to(storage).cpu().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.rounded and not torch.compiler.is_exporting():
            return self.clipped(x)
        everything = 0, torch.iinfo(self.zero.dtype).max
        low, high = (self.grid.lowest, self.grid.highest) if self.saturates else everything
        result: Tensor = operators.quantize_dequantize(x, self.scale, self.zero, low, high)
        return result

    def clipped(self, x: Tensor) -> Tensor:
        """Values that stand on the step, on the grid."""
        if not self.saturates or (self.grid.lowest, self.grid.highest) == (0, kernels.HIGHEST):
            return x
        scale, zero = self.step
        return x.clamp((self.grid.lowest - zero) * scale, (self.grid.highest - zero) * scale)

    @property
    def step(self) -> Step:
        """Scale and zero point."""
        return Step(self.scale.item(), int(self.zero.item()))

    @property
    def rounding(self) -> Step:
        """The step that the file rounds to, before it clips or takes a sign."""
        return self.step

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

    @property
    def rounding(self) -> Step:
        return Step(SIGN_STEP, int(self.zero.item()))

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
    multiplier: Tensor
    out: Step | None = None

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
        self.source = source.step
        centred = self.codes.to(torch.int32) - per_channel(self.zero, self.codes)
        low, high = (end - self.source.zero for end in (source.grid.lowest, source.grid.highest))
        self.exact = ExactProduct(product, centred, self.bias, self.spread, low, high)
        if self.exact.largest >= INT32:
            raise QdeployError(
                f"the products of a {kind} may add up to {self.exact.largest:,}, and kernels add up in "
                f"int32, to {INT32:,}: give the layer fewer bits or fewer inputs"
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.has_kernel and not torch.compiler.is_exporting():
            return self.by_kernel(x)
        weight, bias = self.values(), self.bias
        if self.in_integers:
            bias = operators.dequantize(self.bias, self.bias_scale, self.bias_zero)
        if self.in_rows and x.ndim > 2:
            # As a product of matrices: ONNX Runtime adds the bias in integers in QGemm alone.
            rows = self.product(x.flatten(0, -2), weight, bias)
            return rows.unflatten(0, x.shape[:-1])
        return self.product(x, weight, bias)

    def values(self) -> Tensor:
        """The weight [out, ...] that its codes stand for."""
        weight: Tensor = operators.dequantize(self.codes, self.scale, self.zero)
        return weight

    @property
    def has_kernel(self) -> bool:
        """Whether an integer kernel computes it; no convolution has one that gives floats."""
        return self.in_integers and (self.out is not None or self.product.channel_axis == -1)

    def round_to(self, out: Step) -> None:
        """Its kernel gives codes of this step from now on, and no floats."""
        self.out = out
        self.register_buffer("multiplier", self.bias_scale / self.bias_scale.new_tensor(out.scale))

    def by_kernel(self, x: Tensor) -> Tensor:
        """The values that QLinearConv or QGemm gives of values x."""
        sums = self.exact(kernels.centred(x, self.source))
        if self.out is None:
            return kernels.scaled(sums, self.product.over_outputs(self.bias_scale, sums))
        multiplier = self.product.over_outputs(self.multiplier, sums)
        return kernels.requantized(sums, multiplier, self.out.zero).mul_(self.out.scale)

    def extra_repr(self) -> str:
        bias = "int32" if self.in_integers else "float32"
        return f"{self.kind}, {self.product}, weight={self.grid}, bias={bias}"


class IntegerNorm(IntegerLayer):
    """A BatchNorm as a convolution of one weight a channel: nothing of it was rounded but its bias."""
