"""The ONNX operators that a converted network's own torch operators are exported to."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset21 as op

from qdeploy.grid import SIGN
from qdeploy.layers import operators as operators  # registers them with torch
from qdeploy.layers.fake_quantize import SIGN_STEP


def _dequantize_onnx(codes: Any, scale: Any, zero: Any) -> Any:
    # Without an explicit zero point of a weight ONNX Runtime makes no QGemm, and without one of a
    # bias it cannot save a file whose fusions are left to load (ORT format, style Runtime).
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


def _lstm_onnx(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any) -> Any:
    return op.LSTM(x, w, r, b, None, h, c, **_sizes(w, r))


def _recurrence_onnx(x: Any, w: Any, r: Any, b: Any, h: Any, mode: str) -> Any:
    if mode == "GRU":  # as torch: the state meets its matrix before the reset gate
        return op.GRU(x, w, r, b, None, h, linear_before_reset=1, **_sizes(w, r))
    function = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}[mode]
    return op.RNN(x, w, r, b, None, h, activations=[function] * w.shape[0], **_sizes(w, r))


def _sizes(w: Any, r: Any) -> dict[str, Any]:
    direction = "bidirectional" if w.shape[0] == 2 else "forward"
    return {"hidden_size": r.shape[2], "direction": direction}


def _floor_divided_onnx(a: Any, b: Any) -> Any:
    """a // b of sizes; torch.onnx cuts off towards 0, and -(-height // 2) is how people round up."""
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.qdeploy.dequantize.default: _dequantize_onnx,
    torch.ops.qdeploy.quantize_dequantize.default: _quantize_dequantize_onnx,
    torch.ops.qdeploy.sign.default: _sign_onnx,
    torch.ops.qdeploy.lstm.default: _lstm_onnx,
    torch.ops.qdeploy.recurrence.default: _recurrence_onnx,
    operator.floordiv: _floor_divided_onnx,
}
