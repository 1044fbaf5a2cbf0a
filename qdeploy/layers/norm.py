"""BatchNorm: what folding needs of it, and its statistics over the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from qdeploy import processes
from qdeploy.layers.precision import widened
from qdeploy.layers.snapshot import snapshot

aten = torch.ops.aten
BatchNorm = _BatchNorm  # one of BATCH_NORMS, a subclass such as Range BN, or ChannelAffine
# The norms of torch that may fold into the layer before them.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def deviation(norm: BatchNorm) -> Tensor:
    """Running standard deviation sigma_R, [out]."""
    assert norm.running_var is not None
    variance = snapshot(norm.running_var) if norm.training else norm.running_var
    return torch.sqrt(variance + norm.eps)


def gamma_beta(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Gain and shift after normalising, [out] each; 1 and 0 for a norm without them."""
    assert norm.running_mean is not None
    gamma, beta = norm.weight, norm.bias
    return (
        torch.ones_like(norm.running_mean) if gamma is None else gamma,
        torch.zeros_like(norm.running_mean) if beta is None else beta,
    )


def gain_of(norm: BatchNorm) -> Tensor:
    """gamma / sigma_R, [out]: what folding multiplies the weight by; negative or 0 at times."""
    return gamma_beta(norm)[0] / deviation(norm)


def shift_of(norm: BatchNorm, bias: Tensor | None) -> Tensor:
    """beta + gain (b - mu_R), [out]: the bias of the folded layer."""
    assert norm.running_mean is not None
    offset = -norm.running_mean if bias is None else bias - norm.running_mean
    return gamma_beta(norm)[1] + gain_of(norm) * offset


def batch_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of y [N, C, ...] over the batch of all processes, [C] each.

    Every process holds as many values as the others, so a mean of means is the mean.
    """
    axes = [axis for axis in range(y.ndim) if axis != 1]
    if processes.count() == 1:
        variance, mean = torch.var_mean(y, axes, correction=0)
        return mean, variance
    mean = processes.mean(y.mean(axes))
    return mean, processes.mean((y - over_channels(mean, y)).square().mean(axes))


def over_channels(values: Tensor, y: Tensor) -> Tensor:
    """values [C] shaped to broadcast over y [N, C, ...]."""
    return values.reshape(1, -1, *[1] * (y.ndim - 2))


@contextmanager
def norms_over_processes(network: nn.Module) -> Iterator[None]:
    """Inside the block each BatchNorm of `network` normalises by the moments of the whole batch.

    nn.SyncBatchNorm does so on GPUs only, and is a module of another type, which preparation and
    folding would not know. Here the modules stay what they are and only lose their forward for a
    while: a TorchFunctionMode around F.batch_norm would set nothing from outside, but takes every
    operator of training through Python. A norm with a forward of its own (Range BN) sees to that itself.
    """
    batch_norms = (m for m in network.modules() if isinstance(m, _BatchNorm))
    norms = [norm for norm in batch_norms if type(norm).forward is _BatchNorm.forward]
    if processes.count() > 1:
        for norm in norms:
            norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward(norm: _BatchNorm, y: Tensor) -> Tensor:
    if not norm.training and norm.track_running_stats:
        return type(norm).forward(norm, y)
    normalised, mean, variance = _SharedNorm.apply(widened(y), norm.weight, norm.bias, norm.eps)
    if norm.track_running_stats:
        values = processes.count() * y[:, 0].numel()
        move_statistics(
            norm, mean, variance * (values / (values - 1))
        )  # torch keeps the unbiased one
    return normalised


class _SharedNorm(torch.autograd.Function):
    """BatchNorm of y [N, C, ...] by the moments of all processes, and those moments, [C] each.

    With n values to a channel in all of them and x^ what is normalised,
    dL/dy = gamma / sigma (g - sum(g) / n - x^ sum(g x^) / n), the sums over all processes. Each way
    asks the others once.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        moments = torch.stack(aten.batch_norm_update_stats(y, None, None, 0.0))
        means, variances = processes.gathered(moments).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(y, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(y, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, mean, variance = ctx.saved_tensors
        # As of fixed moments first; what depends on them follows.
        to_y, to_weight, to_bias = aten.native_batch_norm_backward(
            grad, y, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        values = processes.count() * y[:, 0].numel()
        from_bias, from_weight = processes.total(torch.stack([to_bias, to_weight])) / values
        sigma = (variance + ctx.eps).sqrt()
        gain = 1 / sigma if weight is None else weight / sigma
        slope = gain * from_weight / sigma
        to_y.sub_(over_channels(gain * from_bias - slope * mean, y))
        to_y.addcmul_(y, over_channels(-slope, y))
        if weight is None:
            return to_y, None, None, None
        return to_y, to_weight, to_bias, None


@torch.no_grad()
def move_statistics(norm: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Takes a batch into the running statistics as torch does; momentum None is the plain mean."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    weight = 1 / norm.num_batches_tracked.to(mean) if norm.momentum is None else norm.momentum
    norm.running_mean += weight * (mean - norm.running_mean)
    norm.running_var += weight * (variance - norm.running_var)


class ChannelAffine(_BatchNorm):
    """y * weight + bias, [C] each: a BatchNorm whose statistics stay 0 and 1, so that it folds as one.

    constants   gives weight and bias, computed anew from parameters that train; [C], [1] or numbers
    axis        of the channels in y
    """

    def __init__(self, constants: nn.Module, channels: int, axis: int) -> None:
        super().__init__(channels, eps=0.0, affine=False)
        self.constants = constants
        self.axis = axis
        super().train(False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.running_var * self.constants()[0]

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        return self.running_mean + self.constants()[1]

    def train(self, mode: bool = True) -> Self:
        return self

    def forward(self, y: Tensor) -> Tensor:
        shape = [1] * y.ndim
        shape[self.axis] = -1
        return y * self.weight.reshape(shape) + self.bias.reshape(shape)
