"""uint8 images straight into the file: the normalisation moves into the graph.

Where the network's first quantizer gives each of the 256 pixel values its own number as code, the
normalisation and that quantizer together do nothing, and both go: the codes are the pixels.
Elsewhere Cast, Sub and Div compute in the graph what the data pipeline does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from qdeploy.deploy.edits import constant, only_reader
from qdeploy.errors import QdeployError

Floats = npt.NDArray[np.float32]

FOLDED = "uint8, folded into the first quantizer"
IN_GRAPH = "uint8, normalised in the graph"


def take_pixels(model: ir.Model, mean: Sequence[float], std: Sequence[float]) -> str:
    """Makes the input uint8 [N, C, H, W], in place; FOLDED or IN_GRAPH.

    mean, std   per channel, of pixels scaled to 0..1
    """
    image, *others = model.graph.inputs
    if others:
        names = ", ".join(str(value.name) for value in model.graph.inputs)
        raise QdeployError(f"input uint8 is for networks of one input; this one reads {names}")
    channels = _channels(image)
    if not channels == len(mean) == len(std):
        raise QdeployError(
            f"the network takes images of {channels} channels, and the normalisation has "
            f"{len(mean)} means and {len(std)} deviations; give one of each for each channel"
        )
    offset, divisor = (np.float32(255) * np.asarray(values, np.float32) for values in (mean, std))
    quantizer = only_reader(image, "QuantizeLinear")
    image.dtype = ir.DataType.UINT8
    if quantizer is not None and _codes_are_pixels(quantizer, offset, divisor):
        quantizer.outputs[0].replace_all_uses_with(image)
        model.graph.remove(quantizer, safe=True)
        return FOLDED
    _normalise(model.graph, image, offset, divisor)
    return IN_GRAPH


def normalised_noise(
    shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> tuple[npt.NDArray[np.uint8], Tensor]:
    """Random pixels of this shape, and what the network reads in their place."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    offset, divisor = (np.float32(255) * np.asarray(values, np.float32) for values in (mean, std))
    column = (-1, 1, 1)
    images = (pixels - offset.reshape(column)) / divisor.reshape(column)
    return pixels, torch.from_numpy(images.astype(np.float32))


def checked_normalisation(given: object, option: str) -> tuple[list[float], list[float]] | None:
    """(mean, std) as they were given; None for None. Errors: QdeployError for anything else."""
    if given is None:
        return None
    try:
        mean, std = ([float(value) for value in values] for values in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        mean, std = [], []
    if not mean or not std or max(mean) > 1 or max(std) > 1 or min(std) <= 0:
        raise QdeployError(
            f"{option} is {given!r}; allowed: (mean, std), a list each with a value for each channel, "
            "of pixels scaled to 0..1, such as ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])"
        )
    return mean, std


def _channels(image: ir.Value) -> int:
    shape = image.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        raise QdeployError(
            f"input uint8 is for networks that read images [N, C, H, W]; this one reads {shape}"
        )
    return shape[1]


def _codes_are_pixels(quantizer: ir.Node, offset: Floats, divisor: Floats) -> bool:
    """Looks at all 256 pixels of every channel."""
    scale, zero = (value.const_value.numpy() for value in quantizer.inputs[1:])  # type: ignore[union-attr]
    if zero.dtype != np.uint8:
        return False
    pixels = np.arange(256, dtype=np.float32)
    images = (pixels - offset[:, None]) / divisor[:, None]
    codes = np.clip(np.rint(images / scale.astype(np.float32)) + int(zero), 0, 255)
    return bool((codes == pixels).all())


def _normalise(graph: ir.Graph, image: ir.Value, offset: Floats, divisor: Floats) -> None:
    mean, std = (constant(graph, v.reshape(1, -1, 1, 1)) for v in (offset, divisor))
    cast = ir.node("Cast", [image], {"to": ir.DataType.FLOAT})
    centred = ir.node("Sub", [cast.outputs[0], mean])
    scaled = ir.node("Div", [centred.outputs[0], std])
    image.replace_all_uses_with(scaled.outputs[0])
    cast.replace_input_with(0, image)
    graph.insert_before(graph[0], [cast, centred, scaled])
