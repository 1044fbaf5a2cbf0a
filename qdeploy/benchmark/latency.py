"""Latency of several networks, measured in turns so that a slow minute hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from qdeploy.benchmark.inputs import Shapes, random_inputs
from qdeploy.benchmark.on_device import on_device
from qdeploy.benchmark.runtime import Session
from qdeploy.record import Latency

WARM_UP_RUNS = 3
FEWEST_ROUNDS = 5
SECONDS_PER_NETWORK = 2.0

Times = np.ndarray[Any, np.dtype[np.float64]]


def measure(
    sessions: Mapping[str, Session],
    batch: int,
    rounds: int,
    threads: int,
    shapes: Shapes | None = None,
) -> tuple[Latency, ...]:
    """Times the sessions, of one provider, in turns on `batch` random samples.

    shapes   {input: shape}, where a file leaves sizes open

    On a GPU the data lies there, and runs that copy it are timed as well. Speed-ups are against the first.
    """
    given = [(s, random_inputs(s.inference, batch, shapes)) for s in sessions.values()]
    there = [on_device(s, inputs, batch) for s, inputs in given if s.on_gpu]
    from_host = [partial(s.run_on, inputs) for s, inputs in given if not s.cuda_graph]
    every = run_in_turns([*there, *from_host], rounds, SECONDS_PER_NETWORK)
    times, with_copies = np.split(every, [len(given)])
    copied: list[float | None] = [float(np.median(own)) for own in with_copies]
    medians = np.median(times, axis=1)
    return tuple(
        Latency(
            file=file,
            batch=batch,
            provider=session.providers[0],
            threads=threads,
            file_bytes=session.file_bytes,
            load_ms=session.load_ms,
            p50_ms=float(median),
            p90_ms=float(np.percentile(own, 90)),
            p99_ms=float(np.percentile(own, 99)),
            images_per_second=float(batch * 1e3 / own.mean()),
            speedup=float(medians[0] / median),
            rounds=len(own),
            copied_ms=copied_ms,
            cuda_graph=session.cuda_graph,
        )
        for (file, session), own, median, copied_ms in zip(
            sessions.items(), times, medians, copied or [None] * len(given), strict=True
        )
    )


def run_in_turns(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Milliseconds [calls, rounds] of calls made round robin, after a warm-up of each.

    It stops after `rounds` rounds or once `seconds` for each call are spent, whichever comes
    first, though not before FEWEST_ROUNDS (or `rounds`, if that is fewer).
    """
    for call in calls:
        for _ in range(WARM_UP_RUNS):
            call()
    deadline = clock() + seconds * len(calls)
    times: list[list[float]] = []
    while len(times) < rounds and (len(times) < FEWEST_ROUNDS or clock() < deadline):
        times.append([_seconds(call, clock) for call in calls])
    return np.array(times).T * 1e3


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
