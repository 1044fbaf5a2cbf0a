"""Rounding to a grid in the forward pass, straight through in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdeploy.grid import Grid

aten = torch.ops.aten


def quantize(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """Integer codes of x, as floats: clamp(round(x / scale) + zero, low, high), ties to even.

    Divides by the scale, as ONNX QuantizeLinear does; torch.fake_quantize_* multiplies by its
    reciprocal and differs on near-ties.
    """
    return torch.round(x / scale).add_(zero).clamp_(low, high)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        lowest, highest = (low - zero) * scale, (high - zero) * scale
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, *just_outside(lowest, highest))
        bounds: tuple[Any, Any] = lowest, highest
        if on_host(x, lowest):
            bounds = lowest.item(), highest.item()
        return x.clamp(*bounds).div_(scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return passed(grad, *ctx.saved_tensors), None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """x rounded to (code - zero) * scale with low <= code <= high.

    scale, zero: float32 and broadcastable to x, so per tensor or per channel. The gradient is
    1 inside the representable range and 0 outside (Krishnamoorthi, arXiv 1806.08342, section
    2.4); at the value 0, if the range starts there, it is 0 as of a ReLU. scale and zero get none.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, zero, low, high)
    return result


def just_outside(lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest numbers that the range leaves out; 0 if it starts there."""
    below = torch.nextafter(lowest, torch.full_like(lowest, -torch.inf))
    below = torch.where(lowest == 0, lowest, below)
    return below, torch.nextafter(highest, torch.full_like(highest, torch.inf))


def passed(grad: Tensor, x: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """grad where below < x < above, else 0.

    It lies in memory as x does: the kernels of norms and convolutions are slow on a mixture. On a
    CPU one vectorised operator for numbers; masks of booleans take it ten times as long.
    """
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    if on_host(x, below):
        return aten.hardtanh_backward(grad, x, below.item(), above.item())
    return grad * ((x > below) & (x < above))


def on_host(x: Tensor, value: Tensor) -> bool:
    """Whether a single value can be read: without waiting for a device, nor while a graph is made."""
    single = value.numel() == 1 and value.ndim <= x.ndim
    return x.device.type == "cpu" and single and not torch.compiler.is_compiling()


def product(x: Tensor, y: Tensor) -> Tensor:
    """x * y, in the memory of x unless a gradient of the gradient is asked for, which x may belong to."""
    return x * y if torch.is_grad_enabled() else x.mul_(y)


def straight_through(rounded: Tensor, smooth: Tensor) -> Tensor:
    """`rounded` bit for bit, with the gradient of `smooth`."""
    return rounded.detach() + (smooth - smooth.detach())


# The step below which a sign counts as +1. The file takes a sign as a rounding to steps of this
# size; much smaller ones overflow where a runtime converts to int32 before it saturates.
SIGN_STEP = 2.0**-24


def sign_of(x: Tensor) -> Tensor:
    """+1 where x rounds to 0 or more steps of SIGN_STEP, else -1; no gradient."""
    # A CPU has fast arithmetic and slow comparisons: signs -1, 0, 1 first, then 0 joins 1.
    return x.detach().add(SIGN_STEP / 2).sign_().add_(0.5).sign_()


class _FakeSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign_of(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return aten.hardtanh_backward(grad, x, -1.0, 1.0)


def fake_sign(x: Tensor) -> Tensor:
    """-1 or +1; the gradient passes where |x| < 1 (Hubara et al., NeurIPS 2016, eq. 4)."""
    result: Tensor = _FakeSign.apply(x)
    return result


def range_on(
    grid: Grid, minimum: Tensor, maximum: Tensor, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges of any shape; if `symmetric`, 0 is the middle code."""
    if not symmetric:
        return affine_range(minimum, maximum, grid.lowest, grid.highest)
    magnitude = torch.maximum(minimum.abs(), maximum.abs())
    middle = 0 if grid.lowest < 0 else (grid.highest + 1) // 2
    scale = symmetric_range(magnitude, grid.lowest, grid.highest)
    return scale, torch.full_like(magnitude, middle)


def affine_range(
    low_value: Tensor, high_value: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """Scale and nudged zero point of a range (Jacob et al., CVPR 2018, section 3).

    The range is widened to include 0, so that 0 is exact. zero is an integer code in
    low..high, as float32. An empty range gets a tiny scale instead of a division by zero, and 0 in
    its middle: a branch that starts at 0 has a gradient, where a ReLU has none.
    """
    low_value, high_value = low_value.clamp(max=0), high_value.clamp(min=0)
    tiny = torch.finfo(torch.float32).tiny * (high - low)
    scale = (high_value - low_value).clamp(min=tiny) / (high - low)
    zero = torch.round(low - low_value / scale).clamp(low, high)
    return scale, torch.where(low_value == high_value, (low + high + 1) // 2, zero)


def gate_range(scale: Tensor, zero: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The range widened so that -3 and 3 lie on the grid and -3 inside of it.

    There clamp(x / 6 + 1/2, 0, 1), the gate of hardswish, is a clamp of the same codes.
    """
    below, above = ((zero - low) * scale).clamp(min=3.0), (high - zero) * scale
    steps = torch.floor(3.0 * (high - low) / (below + above)).clamp(min=1)
    scale = 3.0 / steps
    return scale, torch.round(low + below / scale).clamp(low, high)


def symmetric_range(magnitude: Tensor, low: int, high: int) -> Tensor:
    """Scale of the range -magnitude..magnitude on low..high; the zero point is fixed."""
    tiny = torch.finfo(torch.float32).tiny * (high - low)
    return (2 * magnitude).clamp(min=tiny) / (high - low)
