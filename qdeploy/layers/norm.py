"""BatchNorm in a run of several processes: a batch's statistics are those of all its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qdeploy import processes
from qdeploy.layers.precision import widened


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
    folding would not know. Here the modules stay what they are. A norm with a forward of its own
    (Range BN) sees to that itself.
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
    y = widened(y)
    mean, variance = batch_moments(y)
    if norm.track_running_stats:
        _move_statistics(norm, mean, variance, values=processes.count() * y[:, 0].numel())
    y = (y - over_channels(mean, y)) / over_channels((variance + norm.eps).sqrt(), y)
    if norm.weight is not None:
        y = y * over_channels(norm.weight, y)
    return y if norm.bias is None else y + over_channels(norm.bias, y)


@torch.no_grad()
def _move_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, values: int) -> None:
    """As torch does: momentum None is the plain mean, and the running variance is the unbiased one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, weight)
    norm.running_var.lerp_(variance * (values / (values - 1)), weight)
