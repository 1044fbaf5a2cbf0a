"""What the processes that train one network exchange; a single process exchanges nothing.

Each process computes a part of every batch. What must be the same in all of them (statistics,
ranges, figures) is a mean, a sum or an extreme over the processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def count() -> int:
    """The number of processes that train together."""
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def rank() -> int:
    """The number of this process, from 0; process 0 writes the files and speaks."""
    return distributed.get_rank() if count() > 1 else 0


def total(x: Tensor) -> Tensor:
    """The sum of every process's x."""
    if count() == 1:
        return x
    x = x.contiguous().clone()
    distributed.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """Every process's x, [processes, ...]."""
    if count() == 1:
        return x.unsqueeze(0)
    parts = [torch.empty_like(x) for _ in range(count())]
    distributed.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def totals(numbers: list[float]) -> list[float]:
    """`total` of each number."""
    if count() == 1:
        return numbers
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    return total(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()


def mean(x: Tensor) -> Tensor:
    """The mean of every process's x, differentiable."""
    if count() == 1:
        return x
    result: Tensor = _Mean.apply(x)
    return result


def extremes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest `low` and the highest `high` of all processes."""
    if count() == 1:
        return low, high
    both = torch.stack([-low, high])
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    return -both[0], both[1]


class _Mean(torch.autograd.Function):
    """y is the mean of all x_r in each process r, so dL/dx_r is the mean of all dL_r/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x) / count()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return mean(grad)
