"""Which layer breaks: every quantized tensor of the file against the training network's.

A file can disagree with its network although each layer is right, because a value on a rounding
tie tips over and later layers amplify it. So both networks run on the same images, and each
quantized tensor is compared in steps of its own grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from qdeploy.benchmark.runtime import open_session
from qdeploy.deploy.convert import activation_at, convert
from qdeploy.deploy.export import finished, to_onnx
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.placement import is_rectifier
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import called_module
from qdeploy.report.record import TensorDifference

Values = npt.NDArray[np.float32]


def trace_layers(
    prepared: PreparedNetwork, images: Tensor, provider: str = "auto"
) -> list[TensorDifference]:
    """Runs the training network in evaluation mode and the ONNX file on `images` [N, C, H, W].

    The file is exported once more with every quantized tensor as an output beside the logits;
    ONNX Runtime's integer kernels stay as they are.
    """
    nodes = {node.name: str(node.target) for node in quantizer_nodes(prepared.network)}
    expected = Recorder(prepared.network.cpu().eval(), set(nodes)).recorded(images.cpu())
    converted = convert(prepared)
    scales = {name: activation_at(target, converted).scale for name, target in nodes.items()}
    expose(converted, list(nodes))
    proto = finished(to_onnx(converted, images, ["logits", *nodes]), True, {})
    session = open_session(proto.SerializeToString(), provider)
    _, *found = session.inference.run(None, {"input": images.cpu().numpy()})
    return [
        compare(label(name, prepared.network), expected[name].numpy(), values, float(scales[name]))
        for name, values in zip(nodes, found, strict=True)
    ]


def quantizer_nodes(network: fx.GraphModule) -> list[fx.Node]:
    """The places where an activation is quantized, in the order of the graph."""
    return [
        node
        for node in network.graph.nodes
        if isinstance(called_module(node, network), ActivationQuantizer)
    ]


def label(name: str, network: fx.GraphModule) -> str:
    """A quantized tensor in the user's words: the layer that made it, and its ReLU."""
    node = next(node for node in network.graph.nodes if node.name == name).all_input_nodes[0]
    if is_rectifier(node, network):
        return f"{node.all_input_nodes[0].target}, {node.name}"
    return str(node.target) if node.op in ("call_module", "placeholder") else node.name


class Recorder(fx.Interpreter):
    """Runs a traced network and keeps the values of the named nodes."""

    def __init__(self, network: fx.GraphModule, names: set[str]) -> None:
        super().__init__(network)
        self.names = names
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = value
        return value

    @torch.inference_mode()
    def recorded(self, images: Tensor) -> dict[str, Tensor]:
        self.run(images)
        return self.values


def expose(network: fx.GraphModule, names: list[str]) -> None:
    """Adds the named nodes to what the network returns."""
    nodes = {node.name: node for node in network.graph.nodes}
    output = next(node for node in network.graph.nodes if node.op == "output")
    output.args = ((output.args[0], *(nodes[name] for name in names)),)
    network.recompile()


def compare(name: str, expected: Values, found: Values, scale: float) -> TensorDifference:
    """Differences in whole steps of `scale`."""
    steps = np.abs(np.rint((expected - found) / scale)).astype(np.int64)
    return TensorDifference(name, steps.size, float((steps > 0).mean()), int(steps.max()))
