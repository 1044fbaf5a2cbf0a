"""From an nn.Module to a torch.fx graph whose nodes know their tensors."""

from __future__ import annotations

import copy
import traceback
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from qdeploy.errors import QdeployError

WAYS_OUT = (
    "Ways out: move what depends on values or shapes out of forward; mark a function with "
    "torch.fx.wrap; or quantize the part of the network that can be traced."
)


def trace(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """A traced copy of the model, each node with its shape in `meta`.

    Errors: QdeployError naming the line of the model that cannot be traced, or saying that the
    model does not take the example input.
    """
    model = copy.deepcopy(model)
    check_input(model, example_input)
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise QdeployError(
            f"torch.fx cannot trace {type(model).__name__}: {error}{_place(error)}. {WAYS_OUT}"
        ) from error
    network = fx.GraphModule(model, graph, type(model).__name__)
    dropout_as_module(network)
    annotate_shapes(network, example_input)
    return network


def check_input(model: nn.Module, example_input: Tensor) -> None:
    """Runs the model once in evaluation mode."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(example_input)
    except Exception as error:
        raise QdeployError(
            f"{type(model).__name__} cannot take an input of shape "
            f"{list(example_input.shape)}: {error}"
        ) from error
    finally:
        model.train(was_training)


def _place(error: Exception) -> str:
    """' (file, line: code)' of the innermost frame outside torch."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    if not frames:
        return ""
    return f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})"


def dropout_as_module(network: fx.GraphModule) -> None:
    """Functional dropouts become modules: tracing froze their `training` argument."""
    kinds: dict[Any, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d}
    for node in list(network.graph.nodes):
        if node.op == "call_function" and node.target in kinds:
            probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
            network.add_submodule(node.name, kinds[node.target](probability))
            with network.graph.inserting_after(node):
                new = network.graph.call_module(node.name, (node.args[0],))
            node.replace_all_uses_with(new)
            network.graph.erase_node(node)
    network.recompile()


def annotate_shapes(network: fx.GraphModule, example_input: Tensor) -> None:
    """Fills node.meta["tensor_meta"] by one run in evaluation mode."""
    was_training = network.training
    with torch.no_grad():
        ShapeProp(network.eval()).propagate(example_input)
    network.train(was_training)


def is_float_tensor(node: fx.Node) -> bool:
    """True for nodes whose value is a floating-point tensor, or a tuple that starts with one."""
    meta = node.meta.get("tensor_meta")
    if is_tuple(node):
        meta = meta[0] if meta else None
    return isinstance(meta, TensorMetadata) and meta.dtype.is_floating_point


def is_tuple(node: fx.Node) -> bool:
    """True for nodes that give several tensors: chunk, split, unbind."""
    meta = node.meta.get("tensor_meta")
    return isinstance(meta, tuple) and not isinstance(meta, TensorMetadata)


def called_module(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None
