"""The one quantized layer: a product with a searched weight, a bias, and its BatchNorm.

The BatchNorm takes part in training in one of three ways, y = BatchNorm(product(x, weight) + bias). With
gain = gamma / sigma_R, where R are the running and B the batch's statistics:

separate  y = BN(product(x, q(w)) + b)
one-conv  y = BN(product(x, q(w gain)) / gain + b)
two-conv  y = product(x, q(w gain)) sigma_R / sigma_B + beta + gamma (b - mu_B) / sigma_B, with the batch's
          statistics taken from a second, float product (Krishnamoorthi, arXiv 1806.08342,
          section 3.2.2, "correction")

The folded ways quantize what ships: the weight with the gain in it. In evaluation, and after
`freeze_bn` steps, both give y = product(x, q(w gain)) + beta + gain (b - mu_R).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.grid import QTensor
from qdeploy.layers.modes import within
from qdeploy.layers.norm import (
    BatchNorm,
    batch_moments,
    deviation,
    gain_of,
    gamma_beta,
    over_channels,
    shift_of,
)
from qdeploy.layers.product import Product, product_of
from qdeploy.layers.transparent import MayBeTransparent
from qdeploy.layers.weight import WeightQuantizer

Fold = Literal["none", "one-conv", "two-conv"]


class QuantizedLayer(MayBeTransparent, nn.Module):
    """A Conv or Linear, joined with the BatchNorm that follows it.

    Its parameters are `weight`, the latent one of the quantizer, and `bias`. The norm is no child: it
    keeps its place and its names in the network. What the float layer says of itself (in_features,
    kernel_size ...) it says as well.

    layer       the float layer: one of WEIGHT_LAYERS
    fold        how the norm takes part in training: see above
    freeze_bn   training steps after which the folded ways use the running statistics; None: never
    product     what a method makes of the layer's product; None: the plain one
    """

    steps: Tensor
    weight: nn.Parameter
    norm: BatchNorm | None

    def __init__(
        self,
        layer: Any,
        norm: BatchNorm | None,
        quantizer: WeightQuantizer,
        fold: Fold = "none",
        freeze_bn: int | None = None,
        product: Product | None = None,
    ) -> None:
        super().__init__()
        self.__dict__ |= {n: v for n, v in vars(layer).items() if not n.startswith("_")}
        self.kind = getattr(layer, "kind", type(layer).__name__)
        self.float_product = product_of(layer)
        self.product = product or self.float_product
        self.quantizer = quantizer
        quantizer.belong_to(self)
        self.bias = getattr(layer, "bias", None)
        self.__dict__["norm"] = norm
        self.fold: Fold = "none" if norm is None else fold
        self.freeze_bn = freeze_bn
        self._frozen = False
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.product_and_norm(x)
        if self.training and self.quantizer.committed:
            return passing_by(self.quantizer.latent, y)
        return y

    def product_and_norm(self, x: Tensor) -> Tensor:
        norm = self.norm
        if norm is None or self.fold == "none":
            y = self.multiply(x, self.quantizer(), self.bias)
            return y if norm is None else norm.forward(y)
        # Calibration re-estimates the norm's statistics with the weights in evaluation mode.
        if not norm.training or (self.training and self._norm_is_frozen()):
            return frozen(self, norm, x)
        return one_conv(self, norm, x) if self.fold == "one-conv" else two_conv(self, norm, x)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        product = self.float_product if self.transparent else self.product
        return product(x, weight, bias)

    def _norm_is_frozen(self) -> bool:
        """Compiled code ends its graph to ask, until the norm is frozen; so again once a state was loaded."""
        if self.freeze_bn is None or self.transparent:
            return False
        if not (torch.compiler.is_compiling() and self._frozen):
            self._frozen = not within(self.steps, self.freeze_bn)
        return self._frozen

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._frozen = False

    @torch.no_grad()
    def integers(self) -> tuple[QTensor, Tensor]:
        """The weight that ships and the float32 bias [out], the BatchNorm folded into both."""
        if self.norm is None:
            weight = self._collapsed(None)
            bias = torch.zeros(len(weight.scale)) if self.bias is None else self.bias
            return weight, bias.detach().cpu()
        gain, bias = gain_of(self.norm), shift_of(self.norm, self.bias).cpu()
        if self.fold == "none":
            return self._collapsed(None).fold(gain.cpu()), bias
        return self._collapsed(gain), bias

    def _collapsed(self, gain: Tensor | None) -> QTensor:
        return self.quantizer.collapse(self.quantizer.scaled_latent(gain)).cpu().checked()

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.product}, fold={self.fold}, freeze_bn={self.freeze_bn}"


def quantized_layers(network: nn.Module) -> list[tuple[str, QuantizedLayer]]:
    """Name and module of each quantized layer of a network."""
    return [(n, m) for n, m in network.named_modules() if isinstance(m, QuantizedLayer)]


class _PassingBy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, parameter: Tensor) -> Tensor:
        ctx.like = parameter.detach()
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(ctx.like)


def passing_by(parameter: nn.Parameter, y: Tensor) -> Tensor:
    """y, which does not depend on `parameter`; over several processes with a gradient of zeros for it.

    DDP waits for a gradient of each parameter. Where nothing waits there is none, so that
    optimizers pass it by as well.
    """
    if processes.count() == 1 or not parameter.requires_grad:
        return y
    result: Tensor = _PassingBy.apply(y, parameter)
    return result


def frozen(layer: QuantizedLayer, norm: BatchNorm, x: Tensor) -> Tensor:
    """The folded layer with running statistics: evaluation, and training after freeze_bn."""
    return layer.multiply(x, layer.quantizer(gain_of(norm)), shift_of(norm, layer.bias))


def one_conv(layer: QuantizedLayer, norm: BatchNorm, x: Tensor) -> Tensor:
    gain = gain_of(norm)
    # A dead channel (gamma 0) is quantized as if gamma were 1: its statistics and its gradient live on.
    gain = torch.where(gain == 0, 1 / deviation(norm), gain).detach()
    y = layer.multiply(x, layer.quantizer(gain), None)
    y = y / over_channels(gain, y)
    return norm.forward(y if layer.bias is None else y + over_channels(layer.bias, y))


def two_conv(layer: QuantizedLayer, norm: BatchNorm, x: Tensor) -> Tensor:
    sigma_running = deviation(norm)  # before this step's update
    weight = layer.quantizer(gain_of(norm))
    y = layer.multiply(x, layer.quantizer.latent, layer.bias)
    mean, variance = batch_moments(y)
    # The module itself updates its running statistics; only that side effect is wanted.
    with torch.no_grad():
        norm.forward(y)
    sigma = torch.sqrt(variance + norm.eps)
    gamma, beta = gamma_beta(norm)
    shift = beta + gamma * (-mean if layer.bias is None else layer.bias - mean) / sigma
    y = layer.multiply(x, weight, None)
    return y * over_channels(sigma_running / sigma, y) + over_channels(shift, y)
