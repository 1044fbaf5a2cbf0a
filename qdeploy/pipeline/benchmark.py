"""benchmark: what ONNX files take and do on this machine. Without a data set, no torch is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qdeploy.benchmark import BenchmarkResult, benchmark_files, open_session
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.recipe import DataSection


@dataclass(frozen=True)
class FileAccuracy:
    """Top-1 of one file on a data set's test images."""

    file: str
    title: str
    samples: int
    top1: float


def benchmark(
    models: Sequence[Path],
    *,
    provider: str = "auto",
    threads: int = 1,
    batch_sizes: Sequence[int] = (1,),
    dataset: str | None = None,
    data_root: Path | None = None,
) -> tuple[BenchmarkResult, list[FileAccuracy]]:
    """Size, load time, latency and placement of each file; accuracy too where a data set is named.

    Speed-ups are against the first file. Errors: QdeployError for files that are no networks, a
    provider that is not there, and data sets as open_data has them.
    """
    result = benchmark_files(models, provider, threads, batch_sizes)
    accuracies = []
    if dataset is not None:
        accuracies = [accuracy(path, dataset, data_root, provider, threads) for path in models]
    return result, accuracies


def accuracy(
    path: Path, dataset: str, data_root: Path | None, provider: str, threads: int
) -> FileAccuracy:
    """Images are normalised as the file's metadata says."""
    from qdeploy.data import open_data
    from qdeploy.deploy.validate import of_session, predict

    session = open_session(path, provider, threads)
    section = DataSection.model_validate(
        {"dataset": dataset, **normalisation(session.metadata, path)}
    )
    data = open_data(section, data_root, False, "cpu", seed=0)
    predictions = predict({"onnx": of_session(session)}, data.test.epoch(0))
    found = predictions.accuracy("onnx")
    assert found is not None
    return FileAccuracy(path.name, data.title, len(predictions.labels), found.top1)


def normalisation(metadata: dict[str, str], path: Path) -> dict[str, list[float]]:
    """mean and std that the network was trained with."""
    if "qdeploy.normalisation" not in metadata:
        raise QdeployError(
            f"{path} does not say how its images are normalised (metadata qdeploy.normalisation); "
            "files that `qdeploy export` wrote do. Leave out --data to measure speed alone"
        )
    found: dict[str, list[float]] = json.loads(metadata["qdeploy.normalisation"])
    return found


def write_benchmark(
    result: BenchmarkResult, accuracies: Sequence[FileAccuracy], folder: Path
) -> Path:
    """benchmark.json in `folder`, whole or not at all."""
    path = folder / "benchmark.json"
    with atomic_write(path) as file:
        file.write(benchmark_json(result, accuracies).encode())
    return path


def benchmark_json(result: BenchmarkResult, accuracies: Sequence[FileAccuracy]) -> str:
    return json.dumps({**asdict(result), "accuracy": [asdict(row) for row in accuracies]}, indent=2)
