"""What the processes that train one network exchange; a single process exchanges nothing.

Each process computes a part of every batch. What must be the same in all of them (statistics,
ranges, figures) is a mean, a sum or an extreme over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from qdeploy.errors import QdeployError

PATIENCE = timedelta(seconds=60)  # of a process that waits for the others to make the same call

_apart = False
_meetings = 0


def count() -> int:
    """The number of processes that train together; 1 inside of `apart`."""
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started and not _apart else 1


def rank() -> int:
    """The number of this process, from 0; process 0 writes the files and speaks."""
    return distributed.get_rank() if count() > 1 else 0


@contextmanager
def apart() -> Iterator[None]:
    """Inside the block this process exchanges nothing, as if it were alone."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def uneven() -> bool:
    """Whether the forward that runs is one of DDP inside of torch's `Join`.

    Processes that are out of data answer DDP's own exchanges there, and nobody else's.
    """
    running = DistributedDataParallel._active_ddp_module if count() > 1 else None
    return running is not None and bool(running._join_config.enable)


def sharded(parameter: Tensor) -> bool:
    """Whether FSDP put a parameter together for this forward alone, in memory that others share.

    What is written to it is lost.
    """
    started = distributed.is_available() and distributed.is_initialized()
    return started and parameter.untyped_storage().nbytes() > parameter.nbytes


def meet(call: str) -> None:
    """Waits until every process makes this call, a function of qdeploy.

    Errors: QdeployError if one does not within PATIENCE.
    """
    global _meetings
    if count() == 1:
        return
    store = distributed.distributed_c10d._get_default_store()
    keys = [f"qdeploy {call} {_meetings} {process}" for process in range(count())]
    store.set(keys[rank()], "here")
    try:
        store.wait(keys, PATIENCE)
    except RuntimeError:
        missing = [str(process) for process, key in enumerate(keys) if not store.check([key])]
        store.delete_key(keys[rank()])
        raise QdeployError(
            f"{call} was called in process {rank()} and not in {', '.join(missing)}, or failed there; call "
            f"it in all, or with alone=True in one and load its state in the others"
        ) from None
    _meetings += 1


@contextmanager
def failing_together(call: str) -> Iterator[None]:
    """An error inside the block in one process is one in all: none waits for what never comes."""
    try:
        yield
    except Exception:
        totals([1])
        raise
    if totals([0]) != [0]:
        raise QdeployError(f"{call} failed in another process, whose message says why")


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
    """The mean of every process's x, differentiable. Errors: QdeployError if data is `uneven`."""
    if count() == 1:
        return x
    if uneven():
        raise QdeployError(
            "a norm takes its statistics from the batches of all processes, and inside of Join some may "
            "have none left; train without Join (a DistributedSampler gives all as many batches), or "
            'without range_norm (int8_training) and fold="two-conv" (simqat)'
        )
    result: Tensor = _Mean.apply(x)
    return result


def mean_of_values(x: Tensor) -> Tensor:
    """The mean of all values of every process's x, which may be empty in some."""
    if count() == 1:
        return x.mean()
    values = x.new_tensor(float(x.numel()))
    summed, values = total(torch.stack([x.sum(), values]))
    return summed / values


def extremes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest `low` and the highest `high` of all processes; infinite where one is no number."""
    if count() == 1:
        return low, high
    both = torch.stack([-low, high]).nan_to_num(torch.inf, torch.inf, -torch.inf)
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    return -both[0], both[1]


def pool(means: Iterable[Tensor], batches: Tensor) -> None:
    """Makes each of `means` that over the batches of all processes, in place.

    batches   [], of how many it is the mean in this process; becomes the number in all
    """
    of_all = total(batches)
    for x in means:
        x.copy_(torch.where(of_all > 0, total(x * batches) / of_all, x))
    batches.copy_(of_all)


class _Mean(torch.autograd.Function):
    """y is the mean of all x_r in each process r, so dL/dx_r is the mean of all dL_r/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x) / count()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return mean(grad)
