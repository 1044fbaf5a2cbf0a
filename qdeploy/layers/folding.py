"""BatchNorm beside a quantized product: kept apart, or folded into the weight while training.

Three ways for one layer, y = BatchNorm(product(x, weight) + bias). With
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

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qdeploy.layers.channel_affine import ChannelAffine
from qdeploy.layers.norm import batch_moments, over_channels

if TYPE_CHECKING:
    from qdeploy.layers.quantized import QuantizedLayer

Fold = Literal["none", "one-conv", "two-conv"]
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | ChannelAffine


def deviation(norm: BatchNorm) -> Tensor:
    """Running standard deviation sigma_R, [out]."""
    assert norm.running_var is not None
    return torch.sqrt(norm.running_var + norm.eps)


def gamma_beta(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Gain and shift after normalising, [out] each; 1 and 0 for a norm without them."""
    assert norm.running_mean is not None
    gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    return gamma, beta


def gain_of(norm: BatchNorm) -> Tensor:
    """gamma / sigma_R, [out]: what folding multiplies the weight by; negative or 0 at times."""
    return gamma_beta(norm)[0] / deviation(norm)


def shift_of(norm: BatchNorm, bias: Tensor | None) -> Tensor:
    """beta + gain (b - mu_R), [out]: the bias of the folded layer."""
    assert norm.running_mean is not None
    offset = -norm.running_mean if bias is None else bias - norm.running_mean
    return gamma_beta(norm)[1] + gain_of(norm) * offset


def separate(layer: QuantizedLayer, x: Tensor) -> Tensor:
    y = layer.product(x, layer.quantizer(), layer.bias)
    return y if layer.norm is None else layer.norm(y)


def frozen(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """The folded layer with running statistics: evaluation, and training after freeze_bn."""
    assert layer.norm is not None
    return layer.product(x, layer.quantizer(gain_of(layer.norm)), shift_of(layer.norm, layer.bias))


def one_conv(layer: QuantizedLayer, x: Tensor) -> Tensor:
    assert layer.norm is not None
    gain = gain_of(layer.norm)
    # A dead channel (gamma 0) is quantized as if gamma were 1: its statistics and its gradient live on.
    gain = torch.where(gain == 0, 1 / deviation(layer.norm), gain).detach()
    y = layer.product(x, layer.quantizer(gain), None)
    y = y / over_channels(gain, y)
    return layer.norm(y if layer.bias is None else y + over_channels(layer.bias, y))


def two_conv(layer: QuantizedLayer, x: Tensor) -> Tensor:
    norm = layer.norm
    assert norm is not None
    sigma_running = deviation(norm)  # before this step's update
    weight = layer.quantizer(gain_of(norm))
    mean, sigma = batch_statistics(norm, layer.product(x, layer.quantizer.latent, layer.bias))
    gamma, beta = gamma_beta(norm)
    offset = -mean if layer.bias is None else layer.bias - mean
    y = layer.product(x, weight, None)
    return y * over_channels(sigma_running / sigma, y) + over_channels(
        beta + gamma * offset / sigma, y
    )


def batch_statistics(norm: BatchNorm, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of this batch, [out] each; moves the running ones as torch does."""
    mean, variance = batch_moments(y)
    # The module itself updates its running statistics; only that side effect is wanted.
    with torch.no_grad():
        norm(y)
    return mean, torch.sqrt(variance + norm.eps)


TRAINING = {"none": separate, "one-conv": one_conv, "two-conv": two_conv}
