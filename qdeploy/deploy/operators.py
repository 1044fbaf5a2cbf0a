"""The quantized ideas as torch operators, and as the ONNX operators they are exported to.

dequantize            integer codes of a weight or a bias become float values
quantize_dequantize   a float activation is rounded to its grid
sign                  a float activation becomes -1 or +1

torch.onnx exports everything around them; these keep codes and grids in the graph, which
autograd functions and torch's own fake-quantize operators lose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset21 as op
from torch import Tensor

from qdeploy.grid import SIGN
from qdeploy.layers.fake_quantize import SIGN_STEP, quantize, sign_of
from qdeploy.layers.weight import Collapsed


@torch.library.custom_op("qdeploy::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(codes - zero) * scale. codes int8, 16 or 32 [out, ...]; scale float32, zero like codes, [out]."""
    return Collapsed(codes, scale, zero).dequantize()


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


def _dequantize_onnx(codes: Any, scale: Any, zero: Any) -> Any:
    if codes.dtype == ir.DataType.INT32:
        return op.DequantizeLinear(codes, scale, axis=0)
    # A weight needs an explicit zero point, or ONNX Runtime makes no QGemm of it.
    return op.DequantizeLinear(codes, scale, zero, axis=0)


def _quantize_dequantize_onnx(x: Any, scale: Any, zero: Any, low: int, high: int) -> Any:
    codes = op.QuantizeLinear(x, scale, zero)
    if zero.dtype == ir.DataType.UINT8 and (low, high) != (0, 255):
        # QuantizeLinear saturates at 8 bits. On the integer side a clip keeps the fused kernels.
        codes = op.Clip(codes, _uint8(low), _uint8(high))
    return op.DequantizeLinear(codes, scale, zero)


def _uint8(value: int) -> Any:
    constant: Any = op.Constant(value_int=value)
    return op.Cast(constant, to=ir.DataType.UINT8)


def _sign_onnx(x: Any) -> Any:
    """Compares integer codes, so that the kernels on both sides stay integer."""
    zero = _uint8(128)
    codes = op.QuantizeLinear(x, op.Constant(value_float=SIGN_STEP), zero)
    low, high = map(_uint8, SIGN.codes)
    signs: Any = op.Where(op.GreaterOrEqual(codes, zero), high, low)
    one: Any = op.Constant(value_float=1.0)
    return op.DequantizeLinear(signs, one, zero)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.qdeploy.dequantize.default: _dequantize_onnx,
    torch.ops.qdeploy.quantize_dequantize.default: _quantize_dequantize_onnx,
    torch.ops.qdeploy.sign.default: _sign_onnx,
}
