"""benchmark: what ONNX files take and do on this machine. Without a data set, no torch is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qdeploy.benchmark import BenchmarkResult, Session, benchmark_files, open_session
from qdeploy.benchmark.inputs import Shapes
from qdeploy.datasets import find
from qdeploy.deploy.inspect import inspect
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.pictures.fit import CENTRE
from qdeploy.pictures.preprocessing import preprocessing_of
from qdeploy.recipe import DataSection, validated


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
    batch_sizes: Sequence[int] | None = None,
    shapes: Shapes | None = None,
    size: int | None = None,
    cuda_graph: bool = False,
    dataset: str | None = None,
    data_root: Path | None = None,
) -> tuple[BenchmarkResult, list[FileAccuracy]]:
    """Size, load time, latency and placement of each file; accuracy too where a data set is named.

    Speed-ups are against the first file. shapes: {input: shape}, for files that leave sizes open;
    size: of every other length that is open.
    cuda_graph: time replays of a CUDA graph, which takes files that run on CUDA alone.
    Errors: QdeployError for files that are no networks, a provider that is not there, and data sets as
    open_data has them.
    """
    result = benchmark_files(
        models, provider, threads, batch_sizes, shapes=shapes, size=size, cuda_graph=cuda_graph
    )
    labelled = zip(models, result.placements, strict=True)
    found = tuple(inspect(path).saturation(placed.file) for path, placed in labelled)
    result = replace(result, saturation=found)
    if dataset is None:
        return result, []
    return result, [
        accuracy_of(path, placement.file, dataset, data_root, provider, threads)
        for path, placement in zip(models, result.placements, strict=True)
    ]


def accuracy_of(
    path: Path, label: str, dataset: str, data_root: Path | None, provider: str, threads: int
) -> FileAccuracy:
    """Images are prepared as the file's metadata says."""
    from torch.utils import _pytree as pytree

    from qdeploy.data import Normalisation, open_data
    from qdeploy.proof.outputs import judge, of_runtime
    from qdeploy.tasks import Classification

    session = open_session(path, provider, threads)
    check_is_classification(session, path)
    table = {"dataset": dataset, **normalisation(session.metadata, path)}
    section = validated(DataSection, table, "--data")
    if find(dataset).image_files:
        section = validated(DataSection, table | data_keys(session, path), "--data")
    data = open_data(section, data_root, False, "cpu", seed=0)
    takes_pixels = session.input_type == "uint8"
    assert data.mean is not None
    assert data.std is not None
    pixels = Normalisation(data.mean, data.std, "cpu").pixels if takes_pixels else None
    forms, one_tensor = {"onnx": of_runtime(session.run_all, pixels)}, pytree.tree_structure(0)
    judged = judge(forms, data.test.epoch(0), Classification(), len(data.classes), one_tensor)
    return FileAccuracy(label, data.title, judged.samples, judged.scores["onnx"]["top1"])


def data_keys(session: Session, path: Path) -> dict[str, object]:
    """Keys of [data] with which image files become what the file's metadata says."""
    pixels = session.input_type == "uint8"
    given = preprocessing_of(session.metadata, session.input_shape, pixels, path)
    table: dict[str, object] = {
        "image_size": given.height,
        "interpolation": given.fit.interpolation,
    }
    crop = given.fit.crop
    if crop == CENTRE:
        return table  # what [data] takes where resize is not given
    return table | {"resize": "whole" if crop is None else round(given.height / crop)}


def check_is_classification(session: Session, path: Path) -> None:
    """Errors: QdeployError unless the file gives logits [N, classes] and nothing else."""
    shapes = [one.shape for one in session.inference.get_outputs()]
    if [len(shape) for shape in shapes] != [2]:
        given = " and ".join(map(str, shapes))
        raise QdeployError(
            f"--data measures top-1 of logits [N, classes], and {path} gives {given}; leave it out to "
            "measure speed alone. The report of its export has the scores of its own task"
        )


def normalisation(metadata: dict[str, str], path: Path) -> dict[str, list[float]]:
    """mean and std that the network was trained with."""
    try:
        found = json.loads(metadata["qdeploy.normalisation"])
        return {"mean": found["mean"], "std": found["std"]}
    except (KeyError, TypeError, ValueError):
        raise QdeployError(
            f"{path} does not say how its images are normalised (metadata qdeploy.normalisation); "
            "files that `qdeploy export` wrote do. Leave out --data to measure speed alone"
        ) from None


def write_benchmark(
    result: BenchmarkResult, accuracies: Sequence[FileAccuracy], folder: Path
) -> Path:
    """benchmark.json in `folder`, which is made if it is missing; whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QdeployError(
            f"cannot make the folder {folder}: {error.strerror}; choose another with -o"
        ) from error
    path = folder / "benchmark.json"
    with atomic_write(path) as file:
        file.write(benchmark_json(result, accuracies).encode())
    return path


def benchmark_json(result: BenchmarkResult, accuracies: Sequence[FileAccuracy]) -> str:
    return json.dumps({**asdict(result), "accuracy": [asdict(row) for row in accuracies]}, indent=2)
