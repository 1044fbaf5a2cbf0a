"""A file is open where it is to be: where forward has made a number of a size, an error says where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from qdeploy.deploy.open_axes import BATCH, OpenAxes
from qdeploy.errors import QdeployError


def check_open(
    model: ir.Model,
    network: nn.Module,
    inputs: Sequence[Tensor],
    axes: OpenAxes,
    others: Sequence[Tensor],
) -> None:
    """Errors: QdeployError if an axis has a number in the file, or the name of another axis.

    It names what keeps the last size.

    others   inputs of other sizes that the network takes, where it takes some
    """
    for value, x, named in zip(model.graph.inputs, inputs, axes, strict=True):
        for axis, name in named.items():
            size = value.shape[axis]  # type: ignore[index]
            if isinstance(size, ir.SymbolicDim) and size.value == name:
                continue
            if isinstance(size, ir.SymbolicDim):
                raise QdeployError(
                    f"{name} of {value.name} has to be equal to {size.value} in this network: give "
                    "both axes one name in dynamic"
                )
            kept = "; ".join(kept_between_calls(network, others)) or "forward makes a number of it"
            what = "batches of" if name == BATCH else f"a {name} of"
            raise QdeployError(
                f"the file would take {what} {x.shape[axis]} alone: {kept}. Compute at every call what "
                "depends on the size of an input (ultralytics' heads do with dynamic = True)"
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
