"""The runtimes that tools/compare_inference.py compares, each in a process of its own.

A process waits for its turn, so nothing of the others runs while one is measured: no pool of
threads that spins, no second library of OpenMP. Threads and all else are as a user would have them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Call = Callable[[], object]
Load = Callable[[str, tuple[int, ...], int], Call]


def onnxruntime(model: str, shape: tuple[int, ...], threads: int) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # once a run ends
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images(shape)}
    return lambda: session.run(None, feed)


def openvino(model: str, shape: tuple[int, ...], threads: int) -> Call:
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    network.reshape(list(shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    batch = images(shape)
    return lambda: request.infer([batch])


def torch_eager(model: str, shape: tuple[int, ...], threads: int) -> Call:
    network, batch = _torch(model, shape, threads)
    return _inference(network, batch)


def torch_compile(model: str, shape: tuple[int, ...], threads: int) -> Call:
    import torch

    network, batch = _torch(model, shape, threads)
    return _inference(torch.compile(network), batch)


def _torch(model: str, shape: tuple[int, ...], threads: int) -> tuple[Any, Any]:
    import torch
    from compare_inference import float_network

    torch.set_num_threads(threads)
    return float_network(model), torch.from_numpy(images(shape))


def _inference(network: Any, batch: Any) -> Call:
    import torch

    @torch.inference_mode()
    def run() -> object:
        return network(batch)

    return run


def images(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Contender:
    """What is measured: a way to load a network, and the file or the name that it loads."""

    name: str
    load: Load
    model: str


TURN_SECONDS = 0.3
REST_SECONDS = 0.02  # until the threads of the last one sleep


def measure(
    contenders: list[Contender], shape: tuple[int, ...], threads: int, turns: int
) -> dict[str, list[float] | str]:
    """Milliseconds of the runs of each contender, taken in turns; or why it could not be run."""
    context = get_context("spawn")
    processes, ends = [], {}
    for contender in contenders:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(contender, shape, threads, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        ends[contender.name] = ours
        failure = ours.recv()  # loaded one after the other
        if failure is not None:
            ends[contender.name] = failure
    times: dict[str, list[float] | str] = {
        name: end if isinstance(end, str) else [] for name, end in ends.items()
    }
    for _ in range(turns):
        for name, end in ends.items():
            if not isinstance(end, str):
                end.send("run")
                times[name] += end.recv()
                time.sleep(REST_SECONDS)
    for end in ends.values():
        if not isinstance(end, str):
            end.send("end")
    for process in processes:
        process.join()
    return times


def _serve(contender: Contender, shape: tuple[int, ...], threads: int, end: Connection) -> None:
    try:
        call = contender.load(contender.model, shape, threads)
        call()
    except Exception as error:  # whatever a runtime fails with is a finding of the comparison
        end.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    end.send(None)
    while end.recv() == "run":
        end.send(_turn(call))


def _turn(call: Call) -> list[float]:
    """Times after a first run, which finds caches cold: one at least, and for TURN_SECONDS."""
    call()
    times: list[float] = []
    until = time.perf_counter() + TURN_SECONDS
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times
