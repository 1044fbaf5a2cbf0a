"""What ONNX Runtime's integer kernels compute on x86, to the last bit: one function a kernel.

tests/layers/test_kernels.py holds each against its kernel in the ONNX Runtime that is installed.
In brackets are the sources: files of onnxruntime/core/mlas/lib and contrib_ops/cpu/quantization.

Activations come and go as *centred* codes: code - zero, whole numbers in float32, and every tensor
has a Step. All is float32 and rounded after every operation, but an `fma` rounds once. Rounding is
to the nearest, ties to even.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qdeploy.layers.exact_product import EXACT

HIGHEST = 255  # of uint8 codes


class Step(NamedTuple):
    """Where a tensor's codes stand: value = (code - zero) * scale, the scale a float32."""

    scale: float
    zero: int


def through_factor(step: Step, factor: float, divides: bool) -> Step:
    """The step of what is multiplied or divided by a number, if what comes of it has `step`."""
    number = float(np.float32(factor))
    scale = step.scale * number if divides else step.scale / number
    return step._replace(scale=float(np.float32(scale)))


def gate_of(step: Step) -> Step | None:
    """The step of the gate of a hardswish, clamp(x / 6 + 1/2, 0, 1), which has the codes of x, clipped.

    With k = 3 / scale a whole number, (code - (zero - k)) * scale / 6 = x / 6 + 1/2. None where 3 is no
    whole number of steps, or lies outside of the range.
    """
    steps = round(3 / step.scale)
    if abs(3 / step.scale - steps) > 1e-3 or step.zero < steps:
        return None
    return Step(float(np.float32(step.scale / 6)), step.zero - steps)


def is_too_fine_to_average(step: Step, out: Step) -> bool:
    """Whether `out` is 256 times finer, where QLinearGlobalAveragePool ends in "out of computation range"."""
    return out.scale * 256 <= step.scale


def centred(x: Tensor, step: Step) -> Tensor:
    """The codes, less the zero, of values that stand on the step already."""
    return (x / step.scale).round_()


def saturated(codes: Tensor, zero: int) -> Tensor:
    """Centred codes rounded, and clipped to what uint8 holds; in place."""
    return codes.clamp_(-zero, HIGHEST - zero).round_()


def scaled(sums: Tensor, multiplier: Tensor | float) -> Tensor:
    """QGemm to float, MatMulIntegerToFloat: f(sums) m, which are values (quant_gemm.cc); in place.

    sums        exact integers, float32 or float64
    multiplier  m = f(input scale x weight scale)
    """
    return sums.to(torch.float32).mul_(multiplier)


def requantized(sums: Tensor, multiplier: Tensor | float, zero: int) -> Tensor:
    """QLinearConv, QLinearMatMul, QGemm to uint8: f(sums) m (quantize.cpp).

    sums        exact integers, float32 or float64
    multiplier  m = f(f(input scale x weight scale) / output scale)
    """
    return saturated(scaled(sums, multiplier), zero)


def fma(a: Tensor, factor: float, summand: Tensor | float) -> Tensor:
    """a * factor + summand, rounded once: float64 holds the product of two float32."""
    return (a.double() * factor + summand).float()


def added(a: Tensor, a_step: Step, b: Tensor, b_step: Step, out: Step) -> Tensor:
    """QLinearAdd from AVX2 on (qladd_avx2.cpp), a the operand whose innermost axis is not broadcast.

    fma(a, ra, fma(b, rb, zc - fma(ra, za, f(rb zb)))) of whole codes, with ra = f(scale a / scale out).
    """
    a_ratio, b_ratio = float(ratio(a_step, out)), float(ratio(b_step, out))
    shift = np.float32(b_ratio * b_step.zero)
    shift = np.float32(out.zero) - np.float32(a_ratio * a_step.zero + float(shift))
    part = fma(b + b_step.zero, b_ratio, float(shift))
    return around_zero(fma(a + a_step.zero, a_ratio, part), out)


def ratio(step: Step, out: Step) -> np.float32:
    return np.float32(step.scale) / np.float32(out.scale)


def multiplied(a: Tensor, a_step: Step, b: Tensor, b_step: Step, out: Step) -> Tensor:
    """QLinearMul (qlmul.cpp): f(f(a b) f(f(scale a x scale b) / scale out)) + zero."""
    step = np.float32(a_step.scale) * np.float32(b_step.scale) / np.float32(out.scale)
    return around_zero(a * b * float(step) + out.zero, out)


def around_zero(codes: Tensor, out: Step) -> Tensor:
    """Codes with their zero point in them, rounded, clipped and centred."""
    return codes.round_().clamp_(0, HIGHEST).sub_(out.zero)


def globally_averaged(a: Tensor, step: Step, out: Step) -> Tensor:
    """QLinearGlobalAveragePool of [N, C, ...] to [N, C] (qlgavgpool.cpp): f(sums) f(scale / f(out n))."""
    pixels = a.flatten(2)
    fits = HIGHEST * pixels.shape[2] < EXACT
    sums = pixels.sum(2, dtype=torch.float32 if fits else torch.float64)
    multiplier = np.float32(step.scale) / (np.float32(out.scale) * np.float32(pixels.shape[2]))
    return requantized(sums, float(multiplier), out.zero)


def averaged(means: Tensor, out: Step) -> Tensor:
    """QLinearAveragePool (qlinear_pool.cc): f(mean / scale out) + zero.

    means   of the dequantized values of each window, added up in its order
    """
    return around_zero(means / means.new_tensor(out.scale) + out.zero, out)


# MLAS's rational function for the logistic (logistic.cpp), highest powers first.
LOGISTIC_LIMIT = 18.0
NUMERATOR = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
    2.48287947061529e-01,
)  # fmt: skip
DENOMINATOR = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
    1.16817656904453e-01, 9.93151921023180e-01,
)  # fmt: skip


def logistic(x: Tensor) -> Tensor:
    """Sigmoid as MLAS has it: x p(x^2) / q(x^2) + 1/2; of values, gives values."""
    x = x.clamp(-LOGISTIC_LIMIT, LOGISTIC_LIMIT)
    square = x * x
    numerator, denominator = (
        _polynomial(square, coefficients) for coefficients in (NUMERATOR, DENOMINATOR)
    )
    return (numerator * x / denominator + 0.5).clamp(min=0)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    first, *others = (float(np.float32(value)) for value in coefficients)
    result = torch.full_like(x, first)
    for value in others:
        result = (result.double() * x.double() + value).float()
    return result
