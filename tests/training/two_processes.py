"""Trains in two processes on the CPU (gloo), without a port: they meet in a file."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qdeploy.training.launch import launched, open_fabric

context = multiprocessing.get_context("forkserver")  # torch is imported once, then forked
context.set_forkserver_preload(["qdeploy.training.loop", "qdeploy.preparation.prepare"])

LIMIT = 300  # seconds; a process that waits for the other for ever fails its test


def in_two_processes(work: Callable[..., None], folder: Path, *arguments: Any) -> list[int | None]:
    """work(fabric, *arguments) in each of two processes; their exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    both = [
        context.Process(target=_process, args=(rank, meeting, work, arguments)) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in both]


def _process(rank: int, meeting: Path, work: Callable[..., None], arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    os.environ["LOCAL_RANK"] = str(rank)  # says that the processes are started already
    fabric = open_fabric("cpu", devices=2)
    with launched(fabric):
        work(fabric, *arguments)
