"""8-bit training: Range BN and quantized back-propagation.

Banner et al., NeurIPS 2018, arXiv 1805.11046. Weights, activations and the gradients that flow
from layer to layer have 8 bits. The gradient forks at each product: the branch to the input is
rounded at random to 8 bits, the branch to weight and bias is not rounded (the paper keeps 16 bits
there).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.layers.activation import MovingRange, as_stored
from qdeploy.layers.noise import pairwise_uniform, refuse_gradient_penalty
from qdeploy.layers.norm import BatchNorm
from qdeploy.layers.precision import widened
from qdeploy.layers.product import Convolution, LowBitGradient, MatrixProduct, PlainProduct
from qdeploy.layers.range_norm import RangeConstant, range_norm
from qdeploy.layers.uniform import UniformWeight
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite


class Int8TrainingOptions(Options):
    """Defaults follow the authors' code.

    range_norm       put Range BN in the place of each BatchNorm
    range_constant   C(n) of the paper or of its authors' code, see layers/range_norm.py
    chunks           chunks whose ranges Range BN averages
    grad_bits        bits of the gradient that flows to the input of a layer
    ema_decay        of the moving average of activation ranges
    """

    range_norm: bool = True
    range_constant: RangeConstant = "code"
    chunks: PositiveInt = 16
    grad_bits: int = Field(default=8, ge=2, le=16)
    ema_decay: float = Field(default=0.9, ge=0, lt=1)

    def covers(self, layer: nn.Module) -> bool:
        return not getattr(layer, "transposed", False)


def round_at_random(values: Tensor, bits: int) -> Tensor:
    """`values` rounded to multiples of one step, up or down at random so that the mean is right.

    step = (max - min) / (2^bits - 2), the range widened to include 0: with one step less than
    usual, the multiples that enclose the range are at most 2^bits. The value 0 is one of them and
    stays 0, which half of the gradient behind a ReLU is. Computes in float32 or wider.
    """
    wide = widened(values)
    low, high = torch.aminmax(as_stored(wide))
    tiny = torch.finfo(wide.dtype).tiny
    step = ((high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 2)).clamp(min=tiny)
    noisy = pairwise_uniform(wide).addcdiv_(wide, step)
    return noisy.floor_().mul_(step).to(values.dtype)


class _Bifurcation(torch.autograd.Function):
    """y = product(x, weight) + bias, with

    dL/dx = product^T(round_at_random(dL/dy), weight)
    dL/dweight, dL/dbias = those of the product, from dL/dy as it is
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plain: PlainProduct, bits: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plain, ctx.bits = plain, bits
        return plain(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_gradient_penalty("int8_training", "choose another method, such as simqat")
        # Under autocast the product ran in the type of its gradient.
        x, weight = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        gradients = (
            convolution_gradients if isinstance(ctx.plain, Convolution) else matrix_gradients
        )
        needs_x, *needs = ctx.needs_input_grad[:3]
        to_x = None
        if needs_x:
            rounded = round_at_random(grad, ctx.bits)
            to_x = gradients(ctx.plain, rounded, x, weight, (True, False, False))[0]
        _, to_weight, to_bias = gradients(ctx.plain, grad, x, weight, (False, *needs))
        return to_x, to_weight, to_bias, None, None


Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def convolution_gradients(
    plain: Convolution, grad: Tensor, x: Tensor, weight: Tensor, needs: Needs
) -> Gradients:
    """Gradients of x, weight and bias where needed, from the output's gradient [N, out, ...]."""
    gradients: Gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], plain.stride, plain.padding, plain.dilation,
        False, [0] * len(plain.stride), plain.groups, needs,
    )  # fmt: skip
    return gradients


def matrix_gradients(
    plain: MatrixProduct, grad: Tensor, x: Tensor, weight: Tensor, needs: Needs
) -> Gradients:
    """Gradients of x, weight and bias where needed, from the output's gradient [..., out]."""
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ weight if needs[0] else None,
        rows.T @ x.reshape(-1, x.shape[-1]) if needs[1] else None,
        rows.sum(0) if needs[2] else None,
    )


class BifurcatedProduct(LowBitGradient):
    """A product whose gradient to the input, and not that to the weight, has `grad_bits` bits."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = self.plain
        # The gradient of a convolution takes numbers of zeros alone.
        if isinstance(plain, Convolution) and not plain.pads_by_zeros:
            x, plain = plain.padded(x)
        y: Tensor = _Bifurcation.apply(x, weight, bias, plain, self.grad_bits)
        return y


class SampleRange(MovingRange):
    """A moving range that takes the mean of the samples' minima and of their maxima from each batch."""

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.flatten(1)
        return rows.amin(1), rows.amax(1)  # apart: faster than aminmax

    def over_batch(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if processes.uneven():
            return low.mean(), high.mean()
        return processes.mean_of_values(low), processes.mean_of_values(high)


def weight(site: WeightSite, bits: int, options: Int8TrainingOptions) -> UniformWeight:
    """Symmetric, per channel: integer kernels require weights with zero point 0."""
    return UniformWeight(site.weight, site.signed_grid(bits))


def activation(site: ActivationSite, bits: int, options: Int8TrainingOptions) -> SampleRange:
    return SampleRange(bits, decay=options.ema_decay)


def product(plain: PlainProduct, options: Int8TrainingOptions) -> BifurcatedProduct:
    return BifurcatedProduct(plain, options.grad_bits)


def norm(norm: BatchNorm, options: Int8TrainingOptions) -> BatchNorm:
    if not options.range_norm:
        return norm
    return range_norm(norm, options.chunks, options.range_constant)


METHOD = Method(
    summary="Range BN and gradients of 8 bits between layers, 8 bits",
    paper="Banner et al., NeurIPS 2018, arXiv 1805.11046",
    weight=weight,
    activation=activation,
    weight_bits=(8,),
    act_bits=(8,),
    options=Int8TrainingOptions,
    product=product,
    norm=norm,
)
