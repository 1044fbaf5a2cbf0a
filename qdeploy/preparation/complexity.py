"""What a network computes for one input: products by bit width, and bit operations.

A multiply-accumulate (MAC) is one product of a convolution, a Linear layer or a matrix product, as
in the published 1.81 G of ResNet-18; norms, biases, activations and poolings are not counted.

Bit operations are MACs x weight bits x activation bits, 32 for float (van Baalen et al., Bayesian
Bits, NeurIPS 2020, arXiv 2005.07093).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import (
    ActivationQuantizer,
    calibration,
    parameters_beside_quantizers,
)
from qdeploy.layers.integer import IntegerLayer
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.recurrent import Recurrent, matrix_of
from qdeploy.preparation.graph import Interpreter, called_module, float_inputs
from qdeploy.preparation.prepared import PreparedNetwork, graph_module
from qdeploy.preparation.quantizer_placement import is_mover
from qdeploy.preparation.trace import Inputs, as_inputs, trace
from qdeploy.record import FLOAT_BITS, BitsWork, Complexity, LayerWork


def complexity(network: nn.Module, example_input: Inputs) -> Complexity:
    """The work of a float network, or of what qdeploy.prepare gave, trained or not.

    example_input   [N, ...], of the size that the network is made for, or several such; the first of
                    each is run

    PyTorch's own counter counts, and does not see inside of recurrent layers. Errors: QdeployError for a
    network that torch.fx cannot trace or that does not take the input.
    """
    if any(isinstance(module, IntegerLayer) for module in network.modules()):
        raise QdeployError("complexity takes what qdeploy.prepare returned, before convert")
    example = tuple(x[:1].cpu() for x in as_inputs(example_input))
    copied = copy.deepcopy(network).cpu().eval()
    graph = graph_module(copied) if isinstance(copied, PreparedNetwork) else trace(copied, example)
    counter = ProductCounter(graph)
    with calibration(graph):
        counter.run(*example)
    layers = tuple(layers_of(graph, counter.macs))
    return Complexity(
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        bit_operations=sum(layer.bit_operations for layer in layers),
        by_bits=tuple(by_bits(layers)),
        layers=layers,
    )


class ProductCounter(Interpreter):
    """Runs a graph and counts the products of each node.

    Not under no_grad, and with attention in its plain form: PyTorch's fused kernels hide products.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2  # it counts the additions as well
        network: Any = self.module
        if isinstance(called_module(n, network), Recurrent):
            # Steps, each of which has a product with each matrix.
            self.macs[n] = value[0].shape[:-1].numel()
        return value


def layers_of(network: fx.GraphModule, macs: Mapping[fx.Node, int]) -> Iterator[LayerWork]:
    """What multiplies or holds parameters, in the order the network runs it.

    A layer that is called twice is one layer with the work of both calls.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in network.graph.nodes:
        named = node.op in ("call_module", "get_attr")
        calls.setdefault(str(node.target) if named else node.name, []).append(node)
    for name, nodes in calls.items():
        node, products = nodes[0], sum(macs[node] for node in nodes)
        module = called_module(node, network)
        if isinstance(module, Recurrent):
            for own, part in module.parts():
                weights = matrix_of(part).numel()
                values = parameters_of(part)
                yield work(f"{name}.{own}", part.kind, part, None, values, products * weights)
            continue
        parameters = parameters_read(node, network) if module is None else parameters_of(module)
        if products or parameters:
            kind = type(module).__name__ if module else getattr(node.target, "__name__", node.op)
            reads = bits_read(node, network) if isinstance(module, QuantizedLayer) else None
            yield work(name, kind, module, reads, parameters, products)


def work(
    name: str,
    kind: str,
    module: nn.Module | None,
    act_bits: int | None,
    parameters: int,
    products: int,
) -> LayerWork:
    weight_bits = None
    if isinstance(module, QuantizedLayer):
        kind, weight_bits = module.kind, module.quantizer.grid.bits
    operations = products * (weight_bits or FLOAT_BITS) * (act_bits or FLOAT_BITS)
    return LayerWork(name, kind, weight_bits, act_bits, parameters, products, operations)


def bits_read(node: fx.Node, network: fx.GraphModule) -> int | None:
    """Bits of the tensor that a layer reads; None for float."""
    source = node.all_input_nodes[0]
    while is_mover(source, network):
        source = float_inputs(source)[0]
    read = called_module(source, network)
    return read.grid.bits if isinstance(read, ActivationQuantizer) else None


def parameters_of(module: nn.Module) -> int:
    """Those that the float network has here, the BatchNorm joined with a layer among them."""
    if isinstance(module, QuantizedLayer):
        bias = () if module.bias is None else (module.bias,)
        norm = () if module.norm is None else module.norm.parameters()
        return module.quantizer().numel() + sum(p.numel() for p in (*bias, *norm))
    return sum(parameter.numel() for parameter in parameters_beside_quantizers(module))


def parameters_read(node: fx.Node, network: fx.GraphModule) -> int:
    """Those that the node itself stands for."""
    value = attrgetter(str(node.target))(network) if node.op == "get_attr" else None
    return value.numel() if isinstance(value, nn.Parameter) else 0


def by_bits(layers: tuple[LayerWork, ...]) -> Iterator[BitsWork]:
    """The layers that multiply, together by their bits, from few to many."""
    pairs = {(layer.weight_bits, layer.act_bits) for layer in layers if layer.macs}
    for bits in sorted(pairs, key=lambda pair: [count or FLOAT_BITS for count in pair]):
        group = [x for x in layers if x.macs and (x.weight_bits, x.act_bits) == bits]
        macs = sum(layer.macs for layer in group)
        yield BitsWork(*bits, len(group), macs, sum(layer.bit_operations for layer in group))
