"""The quantized ideas as torch operators, and as the ONNX operators they are exported to.

dequantize            integer codes of a weight or a bias become float values
quantize_dequantize   a float activation is rounded to its grid
sign                  a float activation becomes -1 or +1

torch.onnx exports everything around them; these keep codes and grids in the graph, which
autograd functions and torch's own fake-quantize operators lose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.grid import dequantized
from qdeploy.layers.fake_quantize import quantize, sign_of


@torch.library.custom_op("qdeploy::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(codes - zero) * scale. codes int8, 16 or 32 [out, ...]; scale float32, zero like codes, [out]."""
    return dequantized(codes, scale, zero)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty(codes.shape, dtype=torch.float32, device=codes.device)


@torch.library.custom_op("qdeploy::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """x on the grid (code - zero) * scale, low <= code <= high. scale float32, zero uint8 or 16, scalars."""
    zero = zero.to(torch.float32)
    return quantize(x, scale, zero, low, high).sub_(zero).mul_(scale)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("qdeploy::sign", mutates_args=())
def sign(x: Tensor) -> Tensor:
    """-1 or +1; +1 of 0."""
    return sign_of(x)


@sign.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
