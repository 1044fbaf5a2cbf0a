"""Operators between quantizers that ONNX Runtime computes on codes, as modules of a converted network.

Each gives the very values of its kernel, which stand on the step of the quantizer behind it already.
The exporter sees the plain operator, which ONNX Runtime makes the kernel of.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.layers import kernels
from qdeploy.layers.exact_product import EXACT, exact_type
from qdeploy.layers.kernels import Step, centred


@dataclass(frozen=True)
class Call:
    """A function with all of its arguments but the tensors that come first."""

    function: Callable[..., Tensor]
    others: tuple[Any, ...]
    named: dict[str, Any]

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors, *self.others, **self.named)


class IntegerOperator(nn.Module, ABC):
    """One call of an operator.

    operands  how many tensors it reads
    plain     what the network calls
    steps     of what it reads, in order
    out       of what it gives; None where that is floats
    """

    operands: ClassVar[int] = 1

    def __init__(
        self, plain: Callable[..., Tensor], steps: Sequence[Step], out: Step | None
    ) -> None:
        super().__init__()
        self.plain = plain
        self.steps = tuple(steps)
        self.out = out

    def forward(self, *inputs: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.plain(*inputs)
        return self.kernel(*inputs)

    kernel: Callable[..., Tensor]
    """Of the tensors that it reads, the values that the kernel gives."""

    def extra_repr(self) -> str:
        return f"{self.steps} -> {self.out}"


class IntegerSum(IntegerOperator):
    """QLinearAdd."""

    operands = 2
    out: Step

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        a_step, b_step = self.steps
        if is_repeated(a, b):  # the kernel takes the other one first
            a, b, a_step, b_step = b, a, b_step, a_step
        codes = kernels.added(centred(a, a_step), a_step, centred(b, b_step), b_step, self.out)
        return codes * self.out.scale


def is_repeated(a: Tensor, b: Tensor) -> bool:
    """Whether one value of a meets many of b, on the innermost axis where either has several."""
    sizes = zip(reversed(a.shape), reversed(b.shape), strict=False)
    inner = next(((mine, other) for mine, other in sizes if max(mine, other) > 1), (1, 1))
    return inner[0] == 1 < inner[1]


class IntegerProduct(IntegerOperator):
    """QLinearMul."""

    operands = 2
    out: Step

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        a_step, b_step = self.steps
        codes = kernels.multiplied(centred(a, a_step), a_step, centred(b, b_step), b_step, self.out)
        return codes * self.out.scale


class IntegerMatrixProduct(IntegerOperator):
    """QLinearMatMul, or MatMulIntegerToFloat where what it gives is not rounded."""

    operands = 2

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        a_step, b_step = self.steps
        sums = exact_product(centred(a, a_step), centred(b, b_step))
        multiplier = np.float32(a_step.scale) * np.float32(b_step.scale)
        if self.out is None:
            return kernels.scaled(sums, float(multiplier))
        multiplier /= np.float32(self.out.scale)
        return kernels.requantized(sums, float(multiplier), self.out.zero) * self.out.scale


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of centred codes."""
    kind = exact_type(a.shape[-1] * kernels.HIGHEST**2 < EXACT, a.device)
    return a.to(kind) @ b.to(kind)


class IntegerGlobalAverage(IntegerOperator):
    """QLinearGlobalAveragePool."""

    out: Step

    def kernel(self, x: Tensor) -> Tensor:
        (step,) = self.steps
        codes = kernels.globally_averaged(centred(x, step), step, self.out)
        return (codes * self.out.scale).reshape(self.plain(x).shape)


class IntegerAverage(IntegerOperator):
    """QLinearAveragePool."""

    out: Step

    def kernel(self, x: Tensor) -> Tensor:
        return kernels.averaged(self.plain(x), self.out) * self.out.scale


class IntegerLogistic(IntegerOperator):
    """QLinearSigmoid."""

    out: Step

    def kernel(self, x: Tensor) -> Tensor:
        y = kernels.logistic(x)
        return kernels.saturated(y / y.new_tensor(self.out.scale), self.out.zero) * self.out.scale
