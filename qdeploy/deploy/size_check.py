"""A file of open sizes, held against its network at each size that it is proven on, before it is written."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.benchmark.runtime import Session, open_session
from qdeploy.deploy.metadata import Normalisation
from qdeploy.deploy.other_sizes import Sized
from qdeploy.deploy.pixels import normalised_noise
from qdeploy.deploy.runtime_check import FLOOR, TIMES, distance
from qdeploy.deploy.target import Target
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import write


def check_sizes(
    model: onnx.ModelProto,
    network: nn.Module,
    target: Target,
    sizes: Sequence[Sized],
    pixels: Normalisation | None = None,
) -> None:
    """Runs the file in ONNX Runtime on each size, of which the first is the example's.

    How far it is from the network there, which kernels explain, says what is allowed at the others.

    pixels   how the file normalises the uint8 images that it takes; None if it takes what the network does

    Errors: QdeployError that names a size at which the file stops or computes something else; and if
    there is no ONNX Runtime.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = write(model, Path(folder) / "model.onnx")
        session = open_session(file, "cpu", as_written=target.as_written)
    allowed = math.inf
    for one in sizes:
        found = _distance(session, network, one.inputs, pixels)
        if found > allowed:
            raise QdeployError(
                f"at {one.size} the file computes something else than the network, which takes that size: a "
                f"size in forward became a number, that of the example, {sizes[0].size}. Nothing was "
                "written. Leave out dynamic, or compute in forward with the sizes of its tensors"
            )
        allowed = min(allowed, FLOOR + TIMES * found)


def _distance(
    session: Session, network: nn.Module, inputs: Sequence[Tensor], pixels: Normalisation | None
) -> float:
    """0 to 1; infinite where the file stops or gives other shapes."""
    fed = [x.numpy() for x in inputs]
    if pixels is not None:
        (image,) = inputs
        (fed[0], image) = normalised_noise(image.shape, *pixels)
        inputs = [image]
    with torch.no_grad():
        expected = [x.numpy() for x in pytree.tree_leaves(network(*inputs))]
    names = [value.name for value in session.inference.get_inputs()]
    try:
        found = session.run_on(dict(zip(names, fed, strict=True)))
    except QdeployError:
        return math.inf
    if [x.shape for x in expected] != [x.shape for x in found]:
        return math.inf
    return distance([expected], [found])
