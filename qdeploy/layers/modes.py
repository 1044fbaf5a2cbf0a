"""Modes that a network runs in: evaluation, full precision, recomputation, the first steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from qdeploy.layers.host import on_host, set_both
from qdeploy.layers.snapshot import snapshot


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module has its own mode back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside the block convolutions on a GPU and matrix products multiply in float32.

    TF32, torch's default for the former, keeps 10 bits of each factor and would tip codes over; bfloat16,
    which torch.set_float32_matmul_precision allows as well, keeps 7. What a user allows by
    torch.backends.cuda.matmul.fp32_precision stays: torch.export, within, reads the older settings, and
    torch refuses to have both.
    """
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    allowed = _allowed_in_matrix_products()
    with cudnn.flags(**flags, allow_tf32=False):
        if allowed != "highest":
            torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            if allowed != "highest":
                torch.set_float32_matmul_precision(allowed)


def _allowed_in_matrix_products() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer settings say something else
        return "highest"


def recomputing() -> bool:
    """Whether a forward runs inside of backward, as gradient checkpointing repeats it.

    The step has been observed and counted then. Compiled code is the same for both, and counts twice.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def delayed(
    steps: Tensor, limit: int, early: Tensor, late: Callable[[], Tensor], counting: bool = True
) -> Tensor:
    """`early` in the first `limit` training steps, late() after them; see `within`.

    Compiled code computes both, and the device chooses: one graph for all steps.
    """
    if not torch.compiler.is_compiling():
        return early if within(steps, limit, counting) else late()
    if counting:
        steps.add_(1).clamp_(max=limit + 1)
    return torch.where(snapshot(steps <= limit), early, late())


def within(steps: Tensor, limit: int, counting: bool = True) -> bool:
    """Counts a training step in the buffer `steps`, []; whether it is one of the first `limit`.

    Counts to limit + 1, so that the device is asked only after a state was loaded.
    """
    count = on_host(steps)
    if counting and count <= limit and not recomputing():
        count += 1
        set_both(steps, count)
    return count <= limit
