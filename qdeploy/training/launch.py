"""The processes of a run, one for each device: started here, by torchrun or by a cluster."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch import distributed

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.training.device import pick_device

PrecisionName = Literal["32", "bf16", "fp16"]


class Devices(TypedDict, total=False):
    """Where a run is trained: keys and values of `open_fabric`."""

    device: str
    devices: int | None
    num_nodes: int | None


# Buffers need no broadcast: statistics and ranges are those of all processes already.
OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if torch.__version__ >= "2.13" else "broadcast_buffers": False
}


def open_fabric(
    device: str = "auto",
    devices: int | None = None,
    num_nodes: int | None = None,
    precision: PrecisionName = "32",
) -> Fabric:
    """The devices of a run and the precision of its products; `launched` starts the processes.

    device      auto, cpu or cuda
    devices     devices (on a CPU: processes) on each machine; None: as torchrun says, else 1
    num_nodes   machines; None: as torchrun says, else 1
    precision   of the products in training

    Errors: QdeployError for devices that are not there, numbers that are not torchrun's, and
    fp16 on a CPU.
    """
    kind = pick_device(device).type
    devices, num_nodes = _numbers(devices, num_nodes)
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise QdeployError(
            f"--devices {devices} was asked for, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices; give no more than that"
        )
    if precision == "fp16" and kind == "cpu":
        raise QdeployError('train.precision "fp16" needs a GPU; on a CPU choose "bf16" or "32"')
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=num_nodes,
        strategy=DDPStrategy(**OWN_BUFFERS) if devices * num_nodes > 1 else "auto",
        plugins=[] if precision == "32" else [MixedProducts(AUTOCAST[precision], kind)],
    )


class MixedProducts(MixedPrecision):
    """Fabric's mixed precision, but the images stay float32: a quantizer is the first to read them."""

    def convert_input(self, data: Any) -> Any:
        return data


AUTOCAST: dict[str, Any] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


def _numbers(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Devices on each machine and machines: torchrun's if it started this process."""
    if not distributed.is_torchelastic_launched():
        return devices or 1, num_nodes or 1
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    started = here, everywhere // here
    asked = devices or started[0], num_nodes or started[1]
    if asked != started:
        raise QdeployError(
            f"--devices {asked[0]} --num-nodes {asked[1]} was asked for, but torchrun started "
            f"{started[0]} processes on each of {started[1]} machines; leave both out"
        )
    return started


@contextmanager
def launched(fabric: Fabric) -> Iterator[None]:
    """The block runs in every process of the run.

    Where this process has to start the others itself, each runs the same command again up to
    this place. If it fails, it ends them: they would wait for it. If one of them fails, Fabric
    ends the others; so does torchrun.
    """
    fabric.launch()
    # A weight of one input channel may be stored in two ways, which are the same; torch warns.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        yield
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        raise
    if processes.count() > 1:
        fabric.barrier()
        atexit.register(_part)


def _part() -> None:
    """Before the interpreter is torn down: threads of a group that outlive it can abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def first_process_first(fabric: Fabric) -> Iterator[None]:
    """Process 0 runs the block, then the others do.

    What it finds wrong is said once: if it fails, the others end without a word.
    """
    if processes.rank() > 0 and not fabric.broadcast(False):
        sys.exit(1)
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if processes.rank() == 0:
            fabric.broadcast(succeeded)
