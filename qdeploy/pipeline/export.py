"""export: from a run folder to a proven ONNX file and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor, fx, nn

import qdeploy
from qdeploy.benchmark import benchmark_files
from qdeploy.benchmark.providers import choose
from qdeploy.benchmark.runtime import open_session
from qdeploy.data import Batches, Data
from qdeploy.deploy import validate
from qdeploy.deploy.complexity import complexity
from qdeploy.deploy.convert import convert
from qdeploy.deploy.describe import describe, information_bound
from qdeploy.deploy.export import finished, save, to_onnx
from qdeploy.deploy.layer_trace import trace_layers
from qdeploy.errors import QdeployError
from qdeploy.pipeline.assemble import (
    data_of,
    example_input,
    fingerprint,
    float_network_of,
    settings_text,
    trainable,
)
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import trace
from qdeploy.recipe import Recipe
from qdeploy.report.record import Accuracies, Dataset, Record, Sizes, TensorDifference
from qdeploy.report.write import write_report
from qdeploy.training.checkpoint import load_checkpoint
from qdeploy.training.device import pick_device
from qdeploy.training.record import EpochRecord
from qdeploy.training.run import RunFolder
from qdeploy.training.weights import load_float_weights, load_network_state

Which = Literal["last", "best"]


@dataclass(frozen=True)
class TrainedRun:
    """A run folder, loaded: the trained network, its float network, their data, its epochs."""

    run: RunFolder
    recipe: Recipe
    data: Data
    network: nn.Module
    float_network: nn.Module
    float_is_trained: bool
    history: Sequence[EpochRecord]


def export_run(
    path: Path,
    output: Path | None = None,
    *,
    limits: Mapping[str, float] | None = None,
    checkpoint: Which = "last",
    data_root: Path | None = None,
    device: str = "auto",
    provider: str = "auto",
    samples: int | None = None,
) -> Record:
    """Exports a run, validates the file on the test set, writes the report into the run folder.

    output      the ONNX file; model.onnx in the run folder by default
    limits      gates by name, over those of the recipe; what a failed one means is the caller's affair
    checkpoint  "last", or "best": the epoch that did best on the very test set
    samples     the first so many test images validate; all by default

    Errors: QdeployError for a folder that is no trained run, and as the parts have them.
    """
    run = RunFolder(path)
    target = output or run.model
    check_target(target, run)
    choose(provider)
    trained = load_run(run, checkpoint, data_root, device)
    integers = integers_of(trained)
    files = build(trained, integers)
    save(files.model, target)
    save(files.float, run.float_model)
    predictions = predict(trained, target, device, provider, samples)
    accuracy = Accuracies(*(predictions.accuracy(name) for name in ("float", "trained", "onnx")))
    agreement = predictions.agreement("trained", "onnx")
    timed = benchmark_files([run.float_model, target], provider)
    layers = describe(integers)
    demands = trained.recipe.export.model_copy(update=dict(limits or {}))
    size = Sizes(
        onnx=files.model.ByteSize(),
        float=files.float.ByteSize(),
        int8=files.int8.ByteSize(),
        bound=information_bound(integers, layers),
    )
    record = Record(
        name=trained.recipe.name,
        file=timed.placements[-1].file,
        version=qdeploy.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=timed.machine,
        recipe=trained.recipe.model_dump(mode="json"),
        method=trained.recipe.quantize.method,
        settings=settings_text(trained.network),
        dataset=Dataset(trained.data.title, len(predictions.labels)),
        accuracy=accuracy,
        agreement=agreement,
        size=size,
        complexity=complexity(trained.network, example_input(trained.data)),
        layers=layers,
        latency=timed.latency,
        placements=timed.placements,
        gates=validate.gates(demands, accuracy, agreement, size.onnx),
        training=tuple({**epoch.row()} for epoch in trained.history),
    )
    write_report(record, run.path)
    return record


def trace_run(
    path: Path,
    *,
    checkpoint: Which = "last",
    data_root: Path | None = None,
    device: str = "auto",
    provider: str = "auto",
    samples: int = 256,
) -> list[TensorDifference]:
    """Compares every quantized tensor of the file with the training network's, on test images."""
    trained = load_run(RunFolder(path), checkpoint, data_root, device)
    if not isinstance(trained.network, PreparedNetwork):
        raise QdeployError(f"{path} is a float run: it has no quantized tensors to compare")
    images = torch.cat([images.cpu() for images, _ in first(trained.data.test, samples)])
    return trace_layers(trained.network, images, provider)


def record_json(record: Record, traced: Sequence[TensorDifference] | None) -> str:
    """The record as JSON, with the trace of its layers under "trace" if there is one."""
    if traced is None:
        return record.to_json()
    trace = [asdict(difference) for difference in traced]
    return json.dumps({**json.loads(record.to_json()), "trace": trace}, indent=2)


def check_target(target: Path, run: RunFolder) -> None:
    """Errors: QdeployError for a file that cannot be written or that the float network has."""
    if target.resolve() == run.float_model.resolve():
        raise QdeployError(f"{target} is where the float network goes; choose another file with -o")
    if not target.parent.is_dir():
        raise QdeployError(
            f"cannot write {target}: {target.parent} is no folder; make it, or choose another with -o"
        )


def load_run(run: RunFolder, checkpoint: Which, data_root: Path | None, device: str) -> TrainedRun:
    """Errors: QdeployError if the folder holds no trained run."""
    file = run.last if checkpoint == "last" else run.best
    if not run.recipe.is_file():
        raise QdeployError(
            f"{run.path} is no run: it has no {run.recipe.name}; give a folder that `qdeploy train` wrote"
        )
    if not file.is_file():
        raise QdeployError(
            f"{run.path} is not trained yet: it has no {file.name}; "
            f"`qdeploy train --resume -o {run.path}` goes on with it"
        )
    recipe = Recipe.load(run.recipe)
    data = data_of(recipe, data_root, False, pick_device(device))
    float_network = float_network_of(recipe, data, run.network)
    network = trainable(recipe, float_network, data)
    found = load_checkpoint(file)
    if found.fingerprint != fingerprint(recipe):
        raise QdeployError(
            f"{file} is a checkpoint of {found.fingerprint}, but {run.recipe} is of {fingerprint(recipe)}"
        )
    load_network_state(network, found)
    is_trained = load_baseline(recipe, run, float_network)
    return TrainedRun(run, recipe, data, network, float_network, is_trained, found.history)


def load_baseline(recipe: Recipe, run: RunFolder, float_network: nn.Module) -> bool:
    """Gives the float network its trained weights; False if the run has none.

    A network that was itself trained in float is its own baseline.
    """
    if recipe.quantize.method == "float":
        return True
    if run.float_run.last.is_file():
        load_float_weights(float_network, run.float_run.last)
    elif recipe.model.weights is not None:
        load_float_weights(float_network, Path(recipe.model.weights))
    else:
        return False
    return True


def integers_of(trained: TrainedRun) -> fx.GraphModule:
    """The network as it ships; a float one is only traced."""
    if isinstance(trained.network, PreparedNetwork):
        return convert(trained.network)
    return trace(trained.network, example_input(trained.data)).eval()


@dataclass(frozen=True)
class Files:
    """The exported network, the same with int8 codes, and the float network."""

    model: onnx.ModelProto
    int8: onnx.ModelProto
    float: onnx.ModelProto


def build(trained: TrainedRun, integers: nn.Module) -> Files:
    example, metadata = example_input(trained.data), metadata_of(trained)
    graph = to_onnx(integers, example)
    reference = to_onnx(trained.float_network, example)
    return Files(
        model=finished(graph, True, metadata),
        int8=finished(graph, False, metadata),
        float=finished(reference, False, metadata),
    )


def metadata_of(trained: TrainedRun) -> dict[str, str]:
    """What travels in the file: the recipe, the class names, the input's normalisation."""
    data = trained.data
    return {
        "qdeploy.recipe": portable(trained.recipe).to_toml(),
        "qdeploy.classes": json.dumps(data.classes),
        "qdeploy.normalisation": json.dumps({"mean": data.mean, "std": data.std}),
    }


def portable(recipe: Recipe) -> Recipe:
    """The recipe without the folders of this machine: the file goes to others."""
    model, data = recipe.model, recipe.data
    place, colon, function = model.network.rpartition(":")
    network = f"{Path(place).name}{colon}{function}" if colon else model.network
    weights = None if model.weights is None else Path(model.weights).name
    return recipe.model_copy(
        update={
            "model": model.model_copy(update={"network": network, "weights": weights}),
            "data": data.model_copy(update={"root": None}),
        }
    )


def predict(
    trained: TrainedRun, model: Path, device: str, provider: str, samples: int | None
) -> validate.Predictions:
    """The trained network, the file and, if it is trained, the float network, on the test set."""
    torch_device = pick_device(device)
    classifiers = {
        "trained": validate.of_network(trained.network, torch_device),
        "onnx": validate.of_session(open_session(model, provider, threads=os.cpu_count() or 1)),
    }
    if trained.float_is_trained:
        classifiers["float"] = validate.of_network(trained.float_network, torch_device)
    return validate.predict(classifiers, first(trained.data.test, samples))


def first(batches: Batches, samples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `samples` images, or all, in their batches."""
    left = batches.samples if samples is None else samples
    for images, labels in batches.epoch(0):
        if left <= 0:
            return
        yield images[:left], labels[:left]
        left -= len(labels)
