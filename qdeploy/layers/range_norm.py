"""Range BN: BatchNorm that divides by a range instead of a standard deviation.

Banner et al., NeurIPS 2018, arXiv 1805.11046, section 3.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.norm import BATCH_NORMS, BatchNorm, gamma_beta, move_statistics
from qdeploy.layers.precision import widened
from qdeploy.layers.transparent import MayBeTransparent

RangeConstant = Literal["paper", "code"]

# sqrt(2 ln n) C(n). For normally distributed values C(n) times the range is 1.5 to 1.8 standard
# deviations with the paper's constant, and 0.81 to 0.985 with that of the authors' code.
NUMERATORS: dict[RangeConstant, float] = {
    "paper": 1.0,
    "code": 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))),
}
# In chunks of fewer values both constants give too little.
SMALLEST_CHUNK = 16


class RangeBatchNorm(MayBeTransparent, _BatchNorm):
    """y = gamma (x - mean) / sqrt(d^2 + eps) + beta with d = C(n) times the mean range of chunks.

    The values of a channel, batch and positions in one row, are cut into `chunks` chunks whose
    sizes differ by at most one; fewer where they would have less than 16 values. n is their
    mean size. The range of a chunk is its maximum less its minimum, and C(n) = numerator /
    sqrt(2 ln n), see NUMERATORS.

    running_var is the running d^2, so that evaluation, folding and calibration are those of a
    BatchNorm, and so is `momentum`: the weight of the new batch, None for a plain mean. While it
    is transparent it is the BatchNorm that `range_norm` made it of, and keeps its statistics.

    Errors: QdeployError in training on a single value per channel.
    """

    def __init__(
        self,
        num_features: int,
        *,
        chunks: int = 16,
        constant: RangeConstant = "code",
        **settings: Any,
    ) -> None:
        super().__init__(num_features, **settings)
        self.chunks = chunks
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        if self.transparent:
            gamma = self.weight / ratio_of(self.constant) if self.affine else None
            return F.batch_norm(x, None, None, gamma, self.bias, True, 0.0, self.eps)
        # Half precision would do for a range, but not for the mean of many values.
        values = widened(x).movedim(1, -1)
        columns = values.flatten(0, -2)  # no copy of what is stored channels last
        chunks, scaling = self.chunking(len(columns))
        y, mean, square = _Normalise.apply(columns, *gamma_beta(self), chunks, scaling, self.eps)
        move_statistics(self, mean, square)
        return y.reshape(values.shape).movedim(-1, 1).to(x.dtype)

    def take_plain_state(self, state: dict[str, Tensor], place: str) -> None:
        """Makes the state of the BatchNorm that it took the place of its own, as `range_norm` does."""
        ratio = ratio_of(self.constant)
        if self.affine and f"{place}weight" in state:
            variance = state[f"{place}running_var"]
            state[f"{place}weight"] = state[f"{place}weight"] * ratio
            state[f"{place}running_var"] = (variance + self.eps) * ratio**2 - self.eps

    def chunking(self, count: int) -> tuple[int, float]:
        """Chunks of so many values, and what their mean range is multiplied by: d."""
        if count < 2:
            raise QdeployError(
                f"Range BN cannot train on {count} value per channel, which has no range; "
                "use a batch of two or more"
            )
        chunks = max(1, min(self.chunks, count // SMALLEST_CHUNK))
        return chunks, NUMERATORS[self.constant] / math.sqrt(2 * math.log(count / chunks))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, chunks={self.chunks}, constant={self.constant}"


class _Normalise(torch.autograd.Function):
    """y = gamma (x - mean) r + beta with r = 1 / sqrt(d^2 + eps); x [count, channels].

    Also gives mean and d^2, those of all processes. With s = sum dy (x - mean), the gradients are

    dgamma = s r, dbeta = sum dy
    dx     = gamma r (dy - mean(dy)), and -gamma s r^3 d dd/dx at each chunk's extremes
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, chunks: int, scaling: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ranges, highest, lowest = chunk_ranges(x, chunks)
        # Over several processes a batch has that many times the chunks.
        mean = processes.mean(x.mean(0))
        d = processes.mean(scaling * ranges.mean(0))
        r = torch.rsqrt(d.square() + eps)
        gain = gamma * r
        ctx.save_for_backward(x, gamma, mean, d, r, highest, lowest)
        ctx.scaling = scaling
        ctx.mark_non_differentiable(mean, square := d.square())
        return torch.addcmul(beta - gain * mean, x, gain), mean, square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, d, r, highest, lowest = ctx.saved_tensors
        to_beta = grad.sum(0)
        s = (grad * x).sum(0) - mean * to_beta
        to_mean = processes.mean(-gamma * r * to_beta)
        to_d = processes.mean(-gamma * s * r.pow(3) * d)
        to_x = torch.addcmul(to_mean / len(x), grad, gamma * r)
        to_end = (ctx.scaling / len(highest) * to_d).expand_as(highest)
        to_x.scatter_add_(0, highest, to_end).scatter_add_(0, lowest, -to_end)
        return to_x, s * r, to_beta, None, None, None


def chunk_ranges(columns: Tensor, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum - minimum of each chunk of columns [count, channels], and in which rows they stand.

    [chunks, channels] each. Chunks differ in size by one at most.
    """
    size, longer = len(columns) // chunks, len(columns) % chunks  # torch.compile has no divmod
    found = []
    start = 0
    for many, length in ((longer, size + 1), (chunks - longer, size)):
        if not many:
            continue
        part = columns[start : start + many * length].unflatten(0, (many, length))
        first = torch.arange(many, device=columns.device)[:, None] * length + start
        # With their places: torch finds those faster than amax finds the values alone.
        (high, highest), (low, lowest) = part.max(1), part.min(1)
        found.append((high - low, highest + first, lowest + first))
        start += many * length
    ranges, highest, lowest = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ranges, highest, lowest


class RangeBatchNorm1d(RangeBatchNorm, nn.BatchNorm1d):
    """Range BN over [N, C] or [N, C, L]."""


class RangeBatchNorm2d(RangeBatchNorm, nn.BatchNorm2d):
    """Range BN over [N, C, H, W]."""


class RangeBatchNorm3d(RangeBatchNorm, nn.BatchNorm3d):
    """Range BN over [N, C, D, H, W]."""


class RangeSyncBatchNorm(RangeBatchNorm, nn.SyncBatchNorm):
    """Range BN over any of them."""


# In the order of BATCH_NORMS.
RANGE_NORMS = (RangeBatchNorm1d, RangeBatchNorm2d, RangeBatchNorm3d, RangeSyncBatchNorm)


def ratio_of(constant: RangeConstant) -> float:
    """What gamma is multiplied by where Range BN takes the place of a BatchNorm."""
    return NUMERATORS[constant] / NUMERATORS["code"]


def range_norm(norm: BatchNorm, chunks: int, constant: RangeConstant) -> BatchNorm:
    """A Range BN that starts where the trained `norm` stands and evaluates to the same.

    With the code's constant d is nearly the standard deviation, so that statistics and gamma can
    stay as they are.
    The paper's is a fixed multiple of it, and both are multiplied by that: training starts at
    the same outputs with either constant. Without a gamma only evaluation starts the same.
    """
    assert norm.running_mean is not None
    pairs = zip(BATCH_NORMS, RANGE_NORMS, strict=True)
    kind = next(ranged for plain, ranged in pairs if isinstance(norm, plain))
    made = kind(
        norm.num_features,
        chunks=chunks,
        constant=constant,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
    ).to(norm.running_mean)
    made.load_state_dict(norm.state_dict())
    if made.affine:
        assert made.running_var is not None
        ratio = ratio_of(constant)
        with torch.no_grad():
            made.weight.mul_(ratio)
            made.running_var.add_(norm.eps).mul_(ratio**2).sub_(norm.eps)
        made.weight.requires_grad_(norm.weight.requires_grad)
        made.bias.requires_grad_(norm.bias.requires_grad)
    return made.train(norm.training)
