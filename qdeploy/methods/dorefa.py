"""DoReFa-Net: low-bit weights, activations and gradients (Zhou et al., arXiv 1606.06160).

Q_k(u) = round((2^k - 1) u) / (2^k - 1), for u in [0, 1].

weights       2 Q_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1; 1 bit: sign(w) mean|w|
activations   Q_k(clip(x, 0, 1)); not behind a ReLU: clip(x, -1, 1), 1 bit: sign(x)
gradients     see `QuantizedGradient`

The levels of 2 to 7 bits are the odd integers -(2^k - 1) .. 2^k - 1, over 2^k - 1. No integer
kernel holds the 256 levels of 8 bits, -255 .. 255, so 8 and 16 bits have one step fewer, 2^k - 2 in place
of 2^k - 1: the levels are c / 127 with c = -127 .. 127 and c / 32767 with c = -32767 .. 32767. They
have an exact zero. 8 bits run in integer kernels; 16 bits are half the bytes of float32 and run
in float. Under reduce_range 7 bits are c / 63 in the same way.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from qdeploy.grid import Grid, QTensor
from qdeploy.layers.activation import ActivationQuantizer, SignActivation
from qdeploy.layers.fake_quantize import straight_through
from qdeploy.layers.noise import pairwise_uniform, refuse_gradient_penalty
from qdeploy.layers.product import LowBitGradient, PlainProduct, Product
from qdeploy.layers.weight import WeightQuantizer, signs
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite, measured_range

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


class DoReFaOptions(Options):
    """grad_bits: bits of the gradient at each layer's output; 32 leaves it in float."""

    grad_bits: int = Field(default=32, ge=2, le=32)


class SignWeight(WeightQuantizer):
    """sign(w) mean|w|, the mean over the whole layer (section 2.3). latent: the float weight.

    The gradient goes straight through to w; sign(0) = 1.
    """

    def __init__(self, site: WeightSite) -> None:
        super().__init__()
        self.latent = nn.Parameter(site.weight.detach().clone())
        self.grid = Grid((-1, 1))

    def relax(self, latent: Tensor) -> Tensor:
        return straight_through(self.collapse(latent).dequantize(), latent)

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> QTensor:
        size = latent.abs().mean().clamp(min=torch.finfo(latent.dtype).tiny)
        return QTensor.symmetric(signs(latent), size, self.grid)

    def extra_repr(self) -> str:
        return "dorefa, bits=1"


class TanhWeight(WeightQuantizer):
    """2 Q_k(u) - 1 with u = tanh(w) / (2 max|tanh(w)|) + 1/2 (eq. 9), 2 bits or more.

    latent: the float weight. The gradient goes straight through Q_k, and is the true one of tanh
    and of the division by the maximum over the layer. Where no BatchNorm follows, that maximum
    is multiplied back in, so that the layer keeps its size.
    """

    def __init__(self, site: WeightSite, bits: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(site.weight.detach().clone())
        self.bits = bits
        most_odd = 6 if site.reduce_range else 7
        self.grid = Grid.odd(bits) if bits <= most_odd else Grid.signed(bits, narrow=True)
        self.normalized = site.normalized

    def relax(self, latent: Tensor) -> Tensor:
        unit, size = self._unit(latent)
        level = straight_through(self._codes(unit) / self.grid.highest, unit)
        return level * size

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> QTensor:
        unit, size = self._unit(latent)
        return QTensor.symmetric(self._codes(unit), size / self.grid.highest, self.grid)

    def _unit(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """2u - 1, in -1..1, and what the levels are multiplied by."""
        bounded = torch.tanh(latent)
        largest = bounded.abs().amax().clamp(min=torch.finfo(latent.dtype).eps)
        return bounded / largest, torch.ones_like(largest) if self.normalized else largest

    def _codes(self, unit: Tensor) -> Tensor:
        """The nearest codes of the grid, as floats."""
        lowest, step = self.grid.lowest, self.grid.codes[1] - self.grid.codes[0]
        return torch.round((unit * self.grid.highest - lowest) / step) * step + lowest

    def extra_repr(self) -> str:
        size = "1 (BatchNorm follows)" if self.normalized else "max|tanh(w)|"
        return f"dorefa, bits={self.bits}, grid={self.grid}, size={size}"


class BoundedActivation(ActivationQuantizer):
    """Equal steps over 0..bound behind a ReLU, elsewhere over -bound..bound.

    A subclass writes `bound`. The signed range has an exact zero, and so one level fewer.
    """

    zero: Tensor

    def __init__(self, site: ActivationSite, bits: int) -> None:
        super().__init__(Grid.unsigned(bits, narrow=not site.nonnegative))
        self.bits = bits
        self.signed = not site.nonnegative
        self.middle = 1 << (bits - 1) if self.signed else 0
        self.register_buffer("zero", torch.tensor(float(self.middle)), persistent=False)

    @property
    def can_take_over_relu(self) -> bool:
        return not self.signed

    @abstractmethod
    def bound(self) -> Tensor:
        """Where the range ends: a positive float32 scalar, without a gradient."""

    def qparams(self) -> tuple[Tensor, Tensor]:
        return self.bound() / (self.grid.highest - self.zero), self.zero

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}, grid={self.grid}"


class UnitActivation(BoundedActivation):
    """Q_k(clip(x, 0, 1)) (eq. 11), or the same of clip(x, -1, 1)."""

    observing = False

    def bound(self) -> Tensor:
        return torch.ones_like(self.zero)


class _QuantizeGradient(torch.autograd.Function):
    """y = x, and dx = f(dy); see `QuantizedGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_gradient_penalty(f"dorefa with grad_bits = {ctx.bits}", "set grad_bits = 32")
        return quantized_gradient(grad, ctx.bits), None


def quantized_gradient(grad: Tensor, bits: int) -> Tensor:
    """f(dr) = 2 m (Q_k(dr / (2 m) + 1/2 + N) - 1/2), m = max|dr| (eq. 12), of dr [N, ...].

    m is the maximum of each sample, N uniform in -1/2..1/2 over 2^k - 1, so f is dr on average.
    With n = 2^k - 1 and U = n N + 1/2 in 0..1 this equals (round(n dr / (2 m) + U) - 1/2) 2 m / n,
    which is exact to float32 for any k.
    """
    highest = (1 << bits) - 1
    values = grad.to(torch.float32)
    largest = values.abs().amax(tuple(range(1, grad.ndim)), keepdim=True)
    step = largest * (2 / highest)
    steps = values / step.clamp(min=torch.finfo(torch.float32).tiny)
    codes = pairwise_uniform(steps).add_(steps).round_().sub_(0.5)
    codes.clamp_(-highest / 2, highest / 2)
    return codes.mul_(step).to(grad.dtype)


class QuantizedGradient(LowBitGradient):
    """A product that rounds the gradient of its output to k bits, for x and the weight alike."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = _QuantizeGradient.apply(self.plain(x, weight, bias), self.grad_bits)
        return result


def weight(site: WeightSite, bits: int, options: Options) -> WeightQuantizer:
    return SignWeight(site) if bits == 1 else TanhWeight(site, bits)


def activation(site: ActivationSite, bits: int, options: DoReFaOptions) -> ActivationQuantizer:
    binary = bits == 1 and not site.nonnegative
    return SignActivation() if binary else UnitActivation(site, bits)


def product(product: PlainProduct, options: DoReFaOptions) -> Product:
    return product if options.grad_bits == 32 else QuantizedGradient(product, options.grad_bits)


METHOD = Method(
    summary="low-bit weights, activations and gradients, 1 to 8 and 16 bits",
    paper="Zhou et al., arXiv 1606.06160",
    weight=weight,
    activation=activation,
    weight_bits=BITS,
    act_bits=BITS,
    options=DoReFaOptions,
    carrier=measured_range,
    product=product,
)
