"""Measures ONNX files on ONNX Runtime: load time, latency, operators. Nothing here needs torch."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qdeploy.benchmark.execution import placement
from qdeploy.benchmark.inputs import OPEN_SIZE
from qdeploy.benchmark.latency import measure
from qdeploy.benchmark.machine import this_machine
from qdeploy.benchmark.runtime import Session, open_session
from qdeploy.errors import QdeployError
from qdeploy.record import BenchmarkResult

__all__ = [
    "BenchmarkResult",
    "Session",
    "benchmark_files",
    "open_session",
    "placement",
    "this_machine",
]


def benchmark_files(
    paths: Sequence[Path],
    provider: str = "auto",
    threads: int = 1,
    batch_sizes: Sequence[int] = (1,),
    rounds: int = 200,
    size: int = OPEN_SIZE,
    cuda_graph: bool = False,
) -> BenchmarkResult:
    """Measures the files in turns on random inputs; speed-ups are against the first file.

    size         of axes that a file leaves open, but for the batch
    cuda_graph   time replays of a CUDA graph

    On a GPU the data lies there, and the median with copies is measured as well. A file takes `rounds`
    runs or about 2 s at each batch size, whichever is less.

    Errors: QdeployError for no file, or one twice; for a number below 1; for a batch size that a file
    does not take; and as open_session has them.
    """
    counts = {
        "threads": threads,
        "rounds": rounds,
        "batch size": min(batch_sizes, default=0),
        "size": size,
    }
    for name, count in counts.items():
        if count < 1:
            raise QdeployError(f"{name} is {count}, and must be at least 1.")
    files = dict(zip(_labels(paths), paths, strict=True))
    sessions = {
        file: open_session(path, provider, threads, cuda_graph=cuda_graph)
        for file, path in files.items()
    }
    return BenchmarkResult(
        machine=this_machine(),
        latency=tuple(
            row for batch in batch_sizes for row in measure(sessions, batch, rounds, threads, size)
        ),
        placements=tuple(
            placement(path, provider, file, threads, batch_sizes[0], size)
            for file, path in files.items()
        ),
    )


def _labels(paths: Sequence[Path]) -> list[str]:
    """A file's name, or its whole path where two files share the name."""
    shared = Counter(path.name for path in paths)
    labels = [path.name if shared[path.name] == 1 else str(path) for path in paths]
    if not labels or len(set(labels)) < len(labels):
        given = ", ".join(labels) or "none"
        raise QdeployError(f"give one or more files, none more than once; given: {given}.")
    return labels
