"""Measures ONNX files on ONNX Runtime: load time, latency, operators. Nothing here needs torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from qdeploy.benchmark.execution import placement
from qdeploy.benchmark.inputs import Shapes, batch_of, shapes_of
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
    paths: Sequence[str | Path],
    provider: str = "auto",
    threads: int = 1,
    batch_sizes: Sequence[int] | None = None,
    rounds: int = 200,
    shapes: Shapes | None = None,
    size: int | None = None,
    cuda_graph: bool = False,
) -> BenchmarkResult:
    """Measures the files in turns on random inputs; speed-ups are against the first file.

    batch_sizes  that of the shapes by default, and 1 where they say none
    shapes       {input: shape}, for files that leave sizes open
    size         of every open length of inputs without a shape
    cuda_graph   time replays of a CUDA graph

    On a GPU the data lies there, and the median with copies is measured as well. A file takes `rounds`
    runs or about 2 s at each batch size, whichever is less.

    Errors: QdeployError for no file, or one twice; for a number below 1; for a batch size or a shape
    that a file does not take, and an open size that is not given; and as open_session has them.
    """
    counts = {
        "threads": threads,
        "rounds": rounds,
        "batch size": min((1,) if batch_sizes is None else batch_sizes, default=0),
        "size": min(
            (1 if size is None else size, *(n for s in (shapes or {}).values() for n in s))
        ),
    }
    for name, count in counts.items():
        if count < 1:
            raise QdeployError(f"{name} is {count}, and must be at least 1.")
    given = [Path(path) for path in paths]
    files = dict(zip(_labels(given), given, strict=True))
    sessions = {
        file: open_session(path, provider, threads, cuda_graph=cuda_graph)
        for file, path in files.items()
    }
    first = next(iter(sessions.values()))
    _check_names(shapes or {}, sessions)
    if size is not None:
        filled = [shapes_of(one.inference, shapes or {}, size) for one in sessions.values()]
        shapes = {name: shape for each in filled for name, shape in each.items()}
    if batch_sizes is None:
        batch_sizes = (batch_of(first.inference, shapes or {}),)
    return BenchmarkResult(
        machine=this_machine(),
        latency=tuple(
            row
            for batch in batch_sizes
            for row in measure(sessions, batch, rounds, threads, shapes)
        ),
        placements=tuple(
            placement(path, provider, file, threads, batch_sizes[0], shapes)
            for file, path in files.items()
        ),
    )


def _check_names(shapes: Shapes, sessions: Mapping[str, Session]) -> None:
    """Errors: QdeployError for the shape of an input that no file has."""
    inputs = {one.name for session in sessions.values() for one in session.inference.get_inputs()}
    for name in set(shapes) - inputs:
        raise QdeployError(
            f"a shape is given for {name!r}; inputs there are: {', '.join(sorted(inputs))}"
        )


def _labels(paths: Sequence[Path]) -> list[str]:
    """A file's name, or its whole path where two files share the name."""
    shared = Counter(path.name for path in paths)
    labels = [path.name if shared[path.name] == 1 else str(path) for path in paths]
    if not labels or len(set(labels)) < len(labels):
        given = ", ".join(labels) or "none"
        raise QdeployError(f"give one or more files, none more than once; given: {given}.")
    return labels
