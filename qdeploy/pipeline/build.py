"""The files of a trained run: its integers, its int8 twin and its float network, as ONNX."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx, nn

from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.data import Data
from qdeploy.deploy.export import finished, finished_with_tensors, to_onnx
from qdeploy.deploy.metadata import file_metadata, versions
from qdeploy.deploy.pixels import take_pixels
from qdeploy.deploy.target import find_target
from qdeploy.layers.modes import evaluation_mode
from qdeploy.pictures.preprocessing import fit_metadata
from qdeploy.pipeline.trained_run import TrainedRun
from qdeploy.preparation.convert import convert
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import trace
from qdeploy.recipe import Recipe


@dataclass(frozen=True)
class Files:
    """The exported network, and the same with int8 codes.

    target   the runtime that the exported one is for
    input    how images go into it, as Delivery has it
    tensors  {quantizer of the converted network: the tensor of its codes in the exported one}
    """

    model: onnx.ModelProto
    int8: onnx.ModelProto
    target: str
    input: str
    tensors: dict[str, str]


def integers_of(trained: TrainedRun) -> fx.GraphModule:
    """The network as it ships; a float one is only traced."""
    if isinstance(trained.network, PreparedNetwork):
        return convert(trained.network)
    return trace(trained.network, trained.data.example).eval()


def build(trained: TrainedRun, integers: nn.Module) -> Files:
    example, metadata = trained.data.example, metadata_of(trained)
    section = trained.recipe.export
    names = section.input_names, output_names(trained, example)
    graph = to_onnx(integers, example, *names, section.target, section.dynamic)
    image = "float32"
    if (normalisation := normalisation_of(trained.data)) and section.input == "uint8":
        image = take_pixels(graph, *normalisation)
    packs = find_target(section.target).packs
    model, tensors = finished_with_tensors(graph, packs, metadata, section.readable)
    return Files(
        model=model,
        tensors=tensors,
        int8=finished(graph, False, metadata, section.readable),
        target=section.target,
        input=image,
    )


def build_float(trained: TrainedRun) -> onnx.ModelProto:
    """The float network, as ONNX Runtime takes it."""
    example, section = trained.data.example, trained.recipe.export
    names = section.input_names, output_names(trained, example)
    graph = to_onnx(trained.float_network, example, *names, dynamic=section.dynamic)
    return finished(graph, False, metadata_of(trained), section.readable)


def output_names(trained: TrainedRun, example: tuple[Tensor, ...]) -> list[str] | None:
    """As the recipe says, else the task's for a single output; None: as the network calls several."""
    if trained.recipe.export.output_names is not None:
        return trained.recipe.export.output_names
    with evaluation_mode(trained.float_network), torch.no_grad():
        outputs = trained.float_network(*example)
    return [trained.task.output] if isinstance(outputs, Tensor) else None


def normalisation_of(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    return None if data.mean is None or data.std is None else (data.mean, data.std)


def metadata_of(trained: TrainedRun) -> dict[str, str]:
    """What travels in the file: the recipe, the class names, how pictures become its input, the origin."""
    data, recipe = trained.data, portable(trained.recipe).to_toml(defaults=False)
    described = file_metadata(data.classes or None, normalisation_of(data), origin(trained))
    fitted = {} if data.fit is None else fit_metadata(data.input_shape[0], data.fit)
    return {"qdeploy.recipe": recipe, **described, **fitted}


def origin(trained: TrainedRun) -> dict[str, str]:
    """The versions that made the file, which fix what the recipe leaves to defaults, and its weights.

    checkpoint  its name, and the first 16 digits of its SHA-256
    """
    digest = hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest()
    return {
        "checkpoint": f"{trained.checkpoint.name} {digest[:16]}",
        **versions(),
        "onnxruntime": onnx_runtime().__version__,
    }


def portable(recipe: Recipe) -> Recipe:
    """The recipe without the folders of this machine: the file goes to others."""
    model, data, task = recipe.model, recipe.data, recipe.task
    weights = None if model.weights is None else Path(model.weights).name
    changes = {"network": without_folder(model.network), "weights": weights}
    return recipe.model_copy(
        update={
            "model": model.model_copy(update=changes),
            "task": task.model_copy(update={"kind": without_folder(task.kind)}),
            "data": data.model_copy(update={"root": None, "dataset": without_folder(data.dataset)}),
        }
    )


def without_folder(reference: str) -> str:
    """`/home/me/net.py:Net` as `net.py:Net`."""
    place, colon, name = reference.rpartition(":")
    return f"{Path(place).name}{colon}{name}" if colon else reference
