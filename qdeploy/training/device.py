"""Which device a run uses, and whether it gives the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from qdeploy import processes
from qdeploy.errors import QdeployError


def pick_device(name: str) -> torch.device:
    """The device for `auto` (CUDA where there is one, else CPU), `cpu` or `cuda`.

    Raises QdeployError for any other name, and for `cuda` where torch finds no CUDA device:
    a run never falls back silently.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise QdeployError(f"unknown device {name!r}; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise QdeployError(
            f"device cuda was asked for, but torch {torch.__version__} finds no CUDA device; "
            "check the driver and that torch is a CUDA build, or choose cpu or auto"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Inside the block, if `wanted`, torch runs only algorithms that always give the same bits.

    Torch raises a RuntimeError that names the operator where it has none on this device.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its start
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=only_warned)
        torch.backends.cudnn.deterministic = before[1]


def seed_epoch(seed: int, epoch: int) -> None:
    """Let what torch draws in an epoch depend on the seed, the epoch and the process alone.

    So a resumed run draws the same numbers, and no two processes drop the same units.
    """
    sequence = np.random.SeedSequence([seed, epoch, processes.rank()])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def channels_last(network: nn.Module) -> nn.Module:
    """`network` with its 4-d weights stored channels last, as images are (data/batches.py)."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
