"""XNOR-Net: the sign of a weight times one scale per filter (Rastegari et al., ECCV 2016).

arXiv 1603.05279; centring, clamping and the second gradient are those of the published PyTorch
code (jiecaoyu/XNOR-Net-PyTorch). With float or 8-bit activations it is the paper's
binary-weight network. First and last layer stay float, as a rule.

At 1-bit activations the network has to bring values of both signs in front of its layers, so
BatchNorm comes first: BN -> sign -> Conv -> ReLU. The sign of what a ReLU gives is always +1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qdeploy.errors import QdeployError
from qdeploy.grid import Grid, QTensor, per_channel
from qdeploy.layers.activation import ActivationQuantizer, SignActivation
from qdeploy.layers.fake_quantize import fake_sign, sign_of
from qdeploy.layers.product import Convolution, MatrixProduct, PlainProduct, Product
from qdeploy.layers.snapshot import snapshot
from qdeploy.layers.weight import WeightQuantizer, signs
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite, measured_range

Gradient = Literal["paper", "code"]
# The fewest inputs with which a weight is centred.
FEWEST_INPUTS = 4


class XnorOptions(Options):
    """The two choices that the paper and its code leave open.

    gradient    as the paper has it or as the published code. The code's is larger by about the
                weights of a filter: made for Adam, which divides by a gradient's size, and too
                large for SGD at the usual learning rates
    k_map       sign the inputs and multiply by their sizes, in float; needs act_bits = 8
    """

    gradient: Gradient = "paper"
    k_map: bool = False

    def covers(self, layer: nn.Module) -> bool:
        return not getattr(layer, "transposed", False)

    def check(self, act_bits: int | None) -> None:
        if self.k_map and act_bits != 8:
            raise QdeployError(
                "xnor with k_map multiplies by the sizes of what a layer reads, of which it keeps "
                "8 bits: set act_bits = 8; the layer itself takes the signs"
            )


class XnorWeight(WeightQuantizer):
    """latent: the float weight [out, in, ...], value sign(W) mean|W| with the mean per filter.

    W is the latent `confined`. As in the published code, a training step really moves the latent
    there, unless it is frozen; evaluation and `collapse` confine a copy.
    """

    def __init__(self, site: WeightSite, bits: int, options: XnorOptions) -> None:
        super().__init__()
        self.grid = Grid.odd(bits)
        self.options = options
        self.latent = nn.Parameter(site.weight.detach().clone())

    def relax(self, latent: Tensor) -> Tensor:
        if not latent.requires_grad:
            return binarize(confined(latent), self.options.gradient)
        with torch.no_grad():
            latent.copy_(confined(latent))
        return binarize(latent, self.options.gradient)

    def collapse(self, latent: Tensor) -> QTensor:
        weight = confined(latent.detach())
        return QTensor.symmetric(signs(weight), filter_scale(weight), self.grid)

    def extra_repr(self) -> str:
        return f"xnor, {self.options}"


def confined(weight: Tensor) -> Tensor:
    """weight [out, in, ...] less its mean over the inputs, clamped to -1..1.

    Fewer than FEWEST_INPUTS inputs are not centred: nothing would be left of a depthwise layer's single
    one, and a filter of an image's colours could not take their sum. Where the clamp cuts, the
    mean is not quite 0; the next step centres again.
    """
    if is_centred(weight):
        weight = weight - weight.mean(1, keepdim=True)
    return weight.clamp(-1, 1)


def is_centred(weight: Tensor) -> bool:
    return weight.shape[1] >= FEWEST_INPUTS


def filter_scale(weight: Tensor) -> Tensor:
    """alpha = mean|W| of each filter, [out]; never 0."""
    return weight.abs().flatten(1).mean(1).clamp(min=torch.finfo(weight.dtype).tiny)


# Neither of these two keeps the weight for the backward pass: a layer called twice moves it before that.


class _Sign(torch.autograd.Function):
    """sign(W), and factor g_i 1(|W_i| <= 1) as its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float) -> Tensor:
        weight = snapshot(weight)
        ctx.save_for_backward(weight.abs() <= 1)
        ctx.factor = factor
        return signs(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside * ctx.factor, None


class _FilterScale(torch.autograd.Function):
    """mean|W| of each filter of n weights, and factor g sign(W_i) / n as its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float) -> Tensor:
        weight = snapshot(weight)
        ctx.save_for_backward(signs(weight))
        ctx.factor = factor
        return filter_scale(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        return codes * per_channel(grad / codes[0].numel() * ctx.factor, codes), None


def binarize(weight: Tensor, gradient: Gradient) -> Tensor:
    """alpha sign(W) with alpha = mean|W| of each filter.

    The gradient (paper, section 3.1, written for a filter of n weights) is
    dL/dW_i = alpha g_i 1(|W_i| <= 1) + sign(W_i) / n sum_j g_j sign(W_j).
    The published code has it n (1 - 1 / inputs) times as large, the second factor being the
    centring's: a weight is 1 / inputs of the mean that is taken from it. Here it is n
    times as large where nothing is centred.
    """
    factor = 1.0
    if gradient == "code":
        factor = weight[0].numel() - (weight[0, 0].numel() if is_centred(weight) else 0)
    codes: Tensor = _Sign.apply(weight, factor)
    return codes * per_channel(_FilterScale.apply(weight, factor), codes)


@dataclass(frozen=True)
class ScaledSigns(Product):
    """product(sign(x), weight) K + bias (paper, section 3.2, eq. 11).

    K is the mean of |x| over the inputs that each output sees: for a convolution the channels of
    its group (the paper has no groups), averaged over the kernel's window at the same stride,
    padding and dilation; for a Linear all inputs. Gradients reach x through both factors.
    Exported as float operators: no integer kernel multiplies by a map.
    """

    product: PlainProduct
    sign: Callable[[Tensor], Tensor] = fake_sign

    @property
    def channel_axis(self) -> int:  # type: ignore[override]
        return self.product.channel_axis

    @property
    def shipped(self) -> ScaledSigns:
        return replace(self, sign=sign_of)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = self.product(self.sign(x), weight, None) * self.sizes(x, weight)
        if bias is None:
            return y
        linear = isinstance(self.product, MatrixProduct)
        return y + (bias if linear else bias.reshape(-1, *[1] * (y.ndim - 2)))

    def sizes(self, x: Tensor, weight: Tensor) -> Tensor:
        """K, broadcastable to the output."""
        if isinstance(self.product, MatrixProduct):
            return x.abs().mean(-1, keepdim=True)
        assert isinstance(self.product, Convolution)
        groups, window = self.product.groups, weight.shape[2:]
        # One small box for all groups, so that the file holds no more than that.
        box = x.new_full((1, 1, *window), 1 / math.prod(window))
        sizes = x.abs().unflatten(1, (groups, -1)).mean(2).flatten(0, 1).unsqueeze(1)
        sizes = replace(self.product, groups=1)(sizes, box, None)
        sizes = sizes.squeeze(1).unflatten(0, (-1, groups))
        return sizes.repeat_interleave(len(weight) // groups, 1) if groups > 1 else sizes

    def __repr__(self) -> str:
        return f"signs scaled by K, {self.product}"


def activation(site: ActivationSite, bits: int, options: XnorOptions) -> ActivationQuantizer:
    """Signs at 1 bit. With k_map the layer reads 8-bit values and takes their signs itself."""
    if site.nonnegative and (bits == 1 or options.k_map):
        raise QdeployError(
            "xnor takes the sign of what a layer reads, and here a ReLU made it: every sign would "
            "be +1. Put BatchNorm in front of the layer (BN -> Conv -> ReLU; norm_first = true in "
            "the zoo's networks), or set act_bits = 8 or 'float' for it, without k_map"
        )
    return SignActivation() if bits == 1 else measured_range(bits, options)


def product(product: PlainProduct, options: XnorOptions) -> Product:
    return ScaledSigns(product) if options.k_map else product


METHOD = Method(
    summary="signs of weights and activations, one scale a filter, 1 bit",
    paper="Rastegari et al., ECCV 2016, arXiv 1603.05279",
    weight=XnorWeight,
    activation=activation,
    weight_bits=(1,),
    act_bits=(1, 8),
    options=XnorOptions,
    carrier=measured_range,
    product=product,
)
