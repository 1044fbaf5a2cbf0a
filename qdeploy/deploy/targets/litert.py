"""LiteRT, once TensorFlow Lite: its own file beside the ONNX file, run by its interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qdeploy.benchmark.runtime import Array, Images
from qdeploy.deploy import integer_passes, passes
from qdeploy.deploy.litert.graph import TO_FIRST, TO_LAST
from qdeploy.deploy.litert.operators import translated
from qdeploy.deploy.target import OwnFormat, Target
from qdeploy.errors import QdeployError
from qdeploy.record import Record

# A tensor of LiteRT has one step, and its weights stay codes also where floats meet them.
FOR_ONNX_RUNTIME_ALONE = {integer_passes.gates_on_integers, passes.unfold_float_weights}


def rewrite(model: ir.Model) -> None:
    for step in passes.BEFORE_PACKING:
        if step not in FOR_ONNX_RUNTIME_ALONE:
            step(model)


def load(model: Path) -> tuple[str, Callable[..., list[Array]]]:
    """LiteRT's name with its version, and a function from the ONNX file's inputs to its outputs.

    Raises QdeployError if LiteRT cannot read or run the file.
    """
    interpreter = import_module("ai_edge_litert.interpreter")
    version = f"LiteRT {metadata.version('ai-edge-litert')}"
    try:
        network = interpreter.Interpreter(str(model))
    except (RuntimeError, ValueError) as error:
        raise QdeployError(f"{version} cannot read {model}: {error}") from error
    inputs, outputs = network.get_input_details(), network.get_output_details()

    def run(*images: Images) -> list[Array]:
        given = [_turned(image, TO_LAST) for image in images]
        try:
            for one, image in zip(inputs, given, strict=True):
                network.resize_tensor_input(one["index"], image.shape)
            network.allocate_tensors()
            for one, image in zip(inputs, given, strict=True):
                network.set_tensor(one["index"], image)
            network.invoke()
        except (RuntimeError, ValueError) as error:
            raise QdeployError(f"{version} cannot run {model}: {error}") from error
        return [_turned(network.get_tensor(one["index"]), TO_FIRST) for one in outputs]

    return version, run


def _turned(array: Array, order: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(array.transpose(order)) if array.ndim == 4 else array


def advice(record: Record) -> Iterator[str]:
    """Which file LiteRT reads, and whose figures the report has."""
    yield (
        f"LiteRT reads {Path(record.file).with_suffix(FORMAT.suffix)}, which lies beside this file and "
        "takes images as [N, H, W, C]. Bytes and latency here are those of the ONNX file."
    )


FORMAT = OwnFormat(".tflite", translated)
TARGET = Target(
    rewrite=rewrite,
    packs=False,
    load=load,
    own_format=FORMAT,
    advice=advice,
)
