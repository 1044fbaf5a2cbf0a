"""A file takes batches of any length: where forward has made a number of it, an error says where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from qdeploy.deploy.batch_axes import Axes, doubled
from qdeploy.errors import QdeployError


def check_open_batch(
    model: ir.Model, network: nn.Module, inputs: Sequence[Tensor], axes: Axes
) -> None:
    """Errors: QdeployError if the network takes longer batches and the file does not.

    It names what keeps the last length. axes: of the batch in each input
    """
    shapes = [value.shape for value in model.graph.inputs if value.shape]
    is_open = any(not isinstance(size, int) for shape in shapes for size in shape)
    if is_open or not any(axis is not None for axis in axes):
        return
    others = doubled(inputs, axes)
    kept = "; ".join(kept_between_calls(network, others)) or "forward makes a number of the length"
    raise QdeployError(
        f"the file would take batches of {len(inputs[0])} alone: {kept}. Compute at every call what "
        "depends on the length of a batch (ultralytics' heads do with dynamic = True)"
    )


def kept_between_calls(network: nn.Module, others: Sequence[Tensor]) -> Iterator[str]:
    """The modules that write down something at a call, such as a table for the shape of the input.

    others   inputs of another shape than at the last call
    """
    modules = {name: module for name, module in network.named_modules() if name}
    before = {name: dict(vars(module)) for name, module in modules.items()}
    with torch.no_grad():
        network(*others)
    for name, module in modules.items():
        kept = [key for key, value in vars(module).items() if value is not before[name].get(key)]
        if kept:
            yield f"{name} ({type(module).__name__}) keeps {', '.join(kept)} from one call to the next"
