"""From an nn.Module to a torch.fx graph whose nodes know their tensors."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from qdeploy.errors import QdeployError

TORCH = Path(torch.__file__).parent
WAYS_OUT = (
    "Ways out: move what depends on values or shapes out of forward; mark a function with "
    "torch.fx.wrap; or quantize the part of the network that can be traced."
)
# Functional dropouts, and the modules that stand for them.
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout, torch.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
}  # fmt: skip


def trace(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """A traced copy of the model, each node with its shape in `meta`.

    Errors: QdeployError naming the line of the model that cannot be traced, or saying that the
    model does not take the example input.
    """
    check_input(copy.deepcopy(model), example_input)
    network = traced(copy.deepcopy(model).train())
    check_modes(network, traced(copy.deepcopy(model).eval()))
    annotate_shapes(network, example_input)
    return network.train(model.training)


def traced(model: nn.Module) -> fx.GraphModule:
    """The graph of the model in the mode that it is in."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise QdeployError(
            f"torch.fx cannot trace {type(model).__name__}: {error}{_place(error)}. {WAYS_OUT}"
        ) from error
    network = fx.GraphModule(model, graph, type(model).__name__)
    dropout_as_module(network)
    return network


def check_modes(training: fx.GraphModule, evaluation: fx.GraphModule) -> None:
    """A graph has one mode. Errors: QdeployError if forward asks which mode the model is in."""
    nodes = zip(training.graph.nodes, evaluation.graph.nodes, strict=False)
    for node, other in nodes:
        if node.format_node() != other.format_node():
            raise QdeployError(
                f"forward does something else in training ({node.format_node()}) than in evaluation "
                f"({other.format_node()}), and a traced network has one forward for both. Put what "
                "differs into a module of torch.nn, such as BatchNorm or Dropout, or set the model "
                "to its evaluation form"
            )


def check_input(model: nn.Module, example_input: Tensor) -> None:
    """Runs the model once in evaluation mode."""
    try:
        with torch.no_grad():
            model.eval()(example_input)
    except Exception as error:
        raise QdeployError(
            f"{type(model).__name__} cannot take an input of shape "
            f"{list(example_input.shape)}: {error}"
        ) from error


def _place(error: Exception) -> str:
    """' (file, line: code)' of the innermost frame outside torch."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(TORCH) and frame.filename != __file__
    ]
    if not frames:
        return ""
    return f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})"


def dropout_as_module(network: fx.GraphModule) -> None:
    """Functional dropouts become modules: tracing froze their `training` argument."""
    for node in list(network.graph.nodes):
        if node.op == "call_function" and node.target in DROPOUTS:
            probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
            name = f"dropouts.{node.name}"
            network.add_submodule(name, DROPOUTS[node.target](probability))
            with network.graph.inserting_after(node):
                new = network.graph.call_module(name, (node.all_input_nodes[0],))
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


def shape_of(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["tensor_meta"].shape
    return shape


def is_tuple(node: fx.Node) -> bool:
    """True for nodes that give several tensors: chunk, split, unbind."""
    meta = node.meta.get("tensor_meta")
    return isinstance(meta, tuple) and not isinstance(meta, TensorMetadata)


def called_module(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None
