"""The files of a trained run: its integers, its int8 twin and its float network, as ONNX."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import fx, nn

import qdeploy
from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.deploy.export import finished, finished_with_tensors, to_onnx
from qdeploy.deploy.pixels import take_pixels
from qdeploy.deploy.target import find_target
from qdeploy.pipeline.assemble import example_input
from qdeploy.pipeline.trained_run import TrainedRun
from qdeploy.preparation.convert import convert
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import trace
from qdeploy.recipe import Recipe


@dataclass(frozen=True)
class Files:
    """The exported network, the same with int8 codes, and the float network.

    input    how images go into the exported one, as Delivery has it
    tensors  {quantizer of the converted network: the tensor of its codes in the exported one}
    """

    model: onnx.ModelProto
    int8: onnx.ModelProto
    float: onnx.ModelProto
    input: str
    tensors: dict[str, str]


def integers_of(trained: TrainedRun) -> fx.GraphModule:
    """The network as it ships; a float one is only traced."""
    if isinstance(trained.network, PreparedNetwork):
        return convert(trained.network)
    return trace(trained.network, example_input(trained.data)).eval()


def build(trained: TrainedRun, integers: nn.Module) -> Files:
    example, metadata = example_input(trained.data), metadata_of(trained)
    target = trained.recipe.export.target
    graph = to_onnx(integers, example, target=target)
    reference = to_onnx(trained.float_network, example)
    image = "float32"
    if trained.recipe.export.input == "uint8":
        image = take_pixels(graph, trained.data.mean, trained.data.std)
    model, tensors = finished_with_tensors(graph, find_target(target).packs, metadata)
    return Files(
        model=model,
        tensors=tensors,
        int8=finished(graph, False, metadata),
        float=finished(reference, False, metadata),
        input=image,
    )


def metadata_of(trained: TrainedRun) -> dict[str, str]:
    """What travels in the file: the recipe, the class names, how pictures become its input, the origin."""
    data = trained.data
    cropped = {} if data.crop == 1 else {"qdeploy.crop": str(data.crop)}
    return {
        "qdeploy.recipe": portable(trained.recipe).to_toml(defaults=False),
        "qdeploy.classes": json.dumps(data.classes),
        "qdeploy.normalisation": json.dumps({"mean": data.mean, "std": data.std}),
        **cropped,
        "qdeploy.origin": json.dumps(origin(trained), separators=(",", ":")),
    }


def origin(trained: TrainedRun) -> dict[str, str]:
    """The versions that made the file, which fix what the recipe leaves to defaults, and its weights.

    checkpoint  its name, and the first 16 digits of its SHA-256
    """
    digest = hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest()
    return {
        "checkpoint": f"{trained.checkpoint.name} {digest[:16]}",
        "qdeploy": qdeploy.__version__,
        **{part.__name__: part.__version__ for part in (torch, onnx, onnx_runtime())},
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
