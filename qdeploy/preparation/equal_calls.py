"""Calls that compute the same of the same become one, as they do in the file.

onnxsim and ONNX Runtime merge them there, and which kernel runs is decided by what then reads the
one that is left: a layer that two quantizers read is computed in float.
"""

from __future__ import annotations

from torch import fx

from qdeploy.layers.integer import IntegerActivation
from qdeploy.layers.norm import BATCH_NORMS
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.recurrent import Recurrent
from qdeploy.preparation.graph import called_module, replace
from qdeploy.preparation.vocabulary import UNKNOWN, operator_of


def merge_equal_calls(network: fx.GraphModule) -> None:
    """Of what the vocabulary does not know, which may be random, each call stays."""
    first: dict[str, fx.Node] = {}
    for node in list(network.graph.nodes):
        kind = kind_of(node, network)
        if kind and first.setdefault(kind, node) is not node:
            replace(node, first[kind])


def kind_of(node: fx.Node, network: fx.GraphModule) -> str | None:
    """What a call does and of what; None where that is not known."""
    module, called = called_module(node, network), str(node.target)
    if isinstance(module, IntegerActivation):
        called = f"{type(module).__name__} {module.step} {module.grid}"
    elif not isinstance(module, (QuantizedLayer, Recurrent, *BATCH_NORMS)):
        if operator_of(node, network) is UNKNOWN:
            return None
        if module is not None and not module.state_dict():
            called = repr(module)
    return f"{node.op} {called} {node.args} {node.kwargs}"
