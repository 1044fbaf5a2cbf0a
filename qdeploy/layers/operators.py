"""The quantized ideas as torch operators, and as the ONNX operators they are exported to.

dequantize            integer codes of a weight or a bias become float values
quantize_dequantize   a float activation is rounded to its grid
sign                  a float activation becomes -1 or +1
lstm, recurrence      one recurrent layer with its weights as ONNX has them

torch.onnx exports everything around them; these keep codes and grids in the graph, which
autograd functions and torch's own fake-quantize operators lose. torch.onnx would cut the weights of an
LSTM to pieces, to put their gates in another order, and write an RNN step by step.

Recurrent weights have their rows in ONNX's order of gates. With T steps, N sequences and D directions these
are x [T, N, in], w [D, gates * hidden, in], r [D, gates * hidden, hidden], b [D, 2 * gates * hidden] or None
for none, h and c [D, N, hidden] or None for zeros. They give y [T, D, N, hidden] and the last h (and c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


# For each of ONNX's gates its place in torch: of an LSTM i, o, f, c beside i, f, c, o; of a GRU z, r, n
# beside r, z, n.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


def with_gates(rows: Tensor, order: Sequence[int]) -> Tensor:
    """Rows [gates * hidden, ...] with their gates in another order, each called by its present place."""
    return torch.cat([rows.chunk(len(order))[gate] for gate in order])


@torch.library.custom_op("qdeploy::lstm", mutates_args=())
def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of an LSTM: y, and the last h and c."""
    y, h, c = by_torch("LSTM", x, w, r, b, [zeros(x, r) if s is None else s for s in (h, c)])
    return y, h, c


@lstm.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, b: Any, h: Any, c: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_steps(x, r), torch.empty_like(zeros(x, r)), torch.empty_like(zeros(x, r))


@torch.library.custom_op("qdeploy::recurrence", mutates_args=())
def recurrence(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h: Tensor | None, mode: str
) -> tuple[Tensor, Tensor]:
    """A layer of a GRU or RNN, `mode` as torch has it: y and the last h."""
    y, h = by_torch(mode, x, w, r, b, zeros(x, r) if h is None else h)
    return y, h


@recurrence.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, b: Any, h: Any, mode: str) -> tuple[Tensor, Tensor]:
    return empty_steps(x, r), torch.empty_like(zeros(x, r))


def zeros(x: Tensor, r: Tensor) -> Tensor:
    """The state [D, N, hidden] before the first step."""
    return x.new_zeros(r.shape[0], x.shape[1], r.shape[2])


def empty_steps(x: Tensor, r: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], r.shape[0], x.shape[1], r.shape[2])


def by_torch(
    mode: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, state: Any
) -> list[Tensor]:
    """The layer by torch's own operator, which has other orders of gates, axes and weights."""
    gates = GATES[mode]
    of_torch = [gates.index(gate) for gate in range(len(gates))]
    weights = []
    for way in range(len(w)):
        biases = () if b is None else b[way].chunk(2)
        weights += [with_gates(rows, of_torch) for rows in (w[way], r[way], *biases)]
    run = getattr(torch, mode.lower())
    y, *last = run(x, state, weights, b is not None, 1, 0.0, False, len(w) > 1, False)
    return [y.unflatten(2, (len(w), -1)).transpose(1, 2).contiguous(), *last]
