"""The files of a trained run: its integers, its int8 twin and its float network, as ONNX."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import fx, nn

from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.deploy.export import finished, finished_with_tensors, to_onnx
from qdeploy.deploy.metadata import file_metadata, versions
from qdeploy.deploy.pixels import take_pixels
from qdeploy.deploy.target import find_target
from qdeploy.pictures.preprocessing import fit_metadata
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
    section = trained.recipe.export
    names = section.input_names, section.output_names
    graph = to_onnx(integers, example, *names, target=section.target)
    reference = to_onnx(trained.float_network, example, *names)
    image = "float32"
    if section.input == "uint8":
        image = take_pixels(graph, trained.data.mean, trained.data.std)
    packs = find_target(section.target).packs
    model, tensors = finished_with_tensors(graph, packs, metadata, section.readable)
    return Files(
        model=model,
        tensors=tensors,
        int8=finished(graph, False, metadata, section.readable),
        float=finished(reference, False, metadata, section.readable),
        input=image,
    )


def metadata_of(trained: TrainedRun) -> dict[str, str]:
    """What travels in the file: the recipe, the class names, how pictures become its input, the origin."""
    data, recipe = trained.data, portable(trained.recipe).to_toml(defaults=False)
    described = file_metadata(data.classes, (data.mean, data.std), origin(trained))
    return {"qdeploy.recipe": recipe, **described, **fit_metadata(data.input_shape[0], data.fit)}


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
