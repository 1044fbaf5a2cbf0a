"""A file of open sizes, held against its network at each size that it is proven on, before it is written."""

from __future__ import annotations

import copy
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
from qdeploy.deploy.open_axes import names_of, open_axes_of
from qdeploy.deploy.other_sizes import Sized, sizes_to_prove
from qdeploy.deploy.pixels import normalised_noise
from qdeploy.deploy.runtime_check import FLOOR, TIMES, distance
from qdeploy.deploy.target import Target
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import write


def checked_sizes(
    model: onnx.ModelProto,
    network: nn.Module,
    target: Target,
    inputs: Sequence[Tensor],
    pixels: Normalisation | None = None,
) -> tuple[Sized, ...]:
    """The inputs in their own size, a smaller and a larger one, on which the file is right; () if it has one.

    Errors: QdeployError as sizes_to_prove and check_sizes have them.
    """
    axes = open_axes_of(model)
    if not names_of(axes):
        return ()
    network, inputs = copied_to_cpu(network, inputs)
    sizes = sizes_to_prove(network, inputs, axes)
    check_sizes(model, network, target, sizes, pixels)
    return sizes


def copied_to_cpu(
    network: nn.Module, inputs: Sequence[Tensor]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A copy in evaluation, and its inputs there."""
    network = copy.deepcopy(network).eval().cpu()
    return network, tuple(x.cpu().contiguous() for x in inputs)


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
