"""Which layer breaks: every quantized tensor of the file against that of the integers in PyTorch.

A file can disagree with its network although each layer is right, because a float sum on a
rounding tie tips over and later layers amplify it. So both run on the same images, and each
quantized tensor is compared in steps of its own grid.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from qdeploy.benchmark.runtime import open_session
from qdeploy.deploy.export import finished, to_onnx
from qdeploy.layers.integer import IntegerActivation
from qdeploy.preparation.trace import called_module
from qdeploy.preparation.vocabulary import is_clip
from qdeploy.record import TensorDifference

Values = npt.NDArray[np.float32]


def trace_layers(
    integers: fx.GraphModule, images: Tensor, provider: str = "auto"
) -> list[TensorDifference]:
    """Runs what `convert` returned and its ONNX file on `images` [N, C, H, W].

    The file is exported once more with every quantized tensor as an output beside the logits;
    ONNX Runtime's integer kernels stay as they are.
    """
    scales = quantized_tensors(integers)
    exposed = copy.deepcopy(integers).cpu()
    expose(exposed, list(scales))
    with torch.inference_mode():
        _, *expected = exposed(images.cpu())
    proto = finished(to_onnx(exposed, images, ["logits", *scales]), True, {})
    session = open_session(proto.SerializeToString(), provider)
    _, *found = session.inference.run(None, {"input": images.cpu().numpy()})
    return [
        compare(label(name, integers), ours.numpy(), values, scale)
        for (name, scale), ours, values in zip(scales.items(), expected, found, strict=True)
    ]


def quantized_tensors(integers: fx.GraphModule) -> dict[str, float]:
    """Node and scale of each place where values are rounded, in the order of the graph."""
    modules = ((node.name, called_module(node, integers)) for node in integers.graph.nodes)
    return {
        name: module.scale.item()
        for name, module in modules
        if isinstance(module, IntegerActivation) and module.saturates
    }


def label(name: str, network: fx.GraphModule) -> str:
    """A quantized tensor in the user's words: the layer that made it, and its ReLU."""
    node = next(node for node in network.graph.nodes if node.name == name).all_input_nodes[0]
    if is_clip(node, network):
        return f"{_maker(node.all_input_nodes[0])}, {node.name}"
    return _maker(node)


def _maker(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "placeholder") else node.name


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
