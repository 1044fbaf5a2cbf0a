"""Which operators of a converted network ONNX Runtime computes on codes, and to which step they round.

The last part of `convert`: with it the network in PyTorch gives the very codes of its file.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from qdeploy.layers import kernels
from qdeploy.layers.integer import IntegerActivation, IntegerLayer
from qdeploy.layers.integer_operators import (
    Call,
    IntegerAverage,
    IntegerGlobalAverage,
    IntegerLogistic,
    IntegerMatrixProduct,
    IntegerOperator,
    IntegerProduct,
    IntegerSum,
)
from qdeploy.layers.kernels import Step
from qdeploy.preparation.graph import (
    called_module,
    float_inputs,
    is_tuple,
    module_calls,
    only_reader,
    shape_of,
)
from qdeploy.preparation.quantizer_placement import is_mover, made_of_inputs
from qdeploy.preparation.rewrites import factor
from qdeploy.preparation.vocabulary import (
    ADAPTIVE_AVERAGE,
    ADD,
    AVERAGE,
    DIVIDE,
    HARDSIGMOID,
    MATRIX_PRODUCT,
    MEAN,
    MULTIPLY,
    SIGMOID,
    Argument,
    argument,
    is_clip,
    is_relu,
    operator_of,
)

KERNELS: dict[object, type[IntegerOperator]] = {
    ADD: IntegerSum,
    MULTIPLY: IntegerProduct,
    MATRIX_PRODUCT: IntegerMatrixProduct,
    SIGMOID: IntegerLogistic,
    AVERAGE: IntegerAverage,
}


def onto_kernels(network: fx.GraphModule) -> None:
    """Makes each layer and operator that has an integer kernel compute what the kernel does."""
    for node in list(network.graph.nodes):
        out, layer = step_behind(node, network), called_module(node, network)
        if isinstance(layer, IntegerLayer):
            if layer.in_integers and out is not None:
                layer.round_to(out)
        elif (made := integer_operator(node, out, network)) is not None:
            network.add_submodule(name := f"kernels.{node.name}", made)
            tensors = tuple(part for part in node.args if isinstance(part, fx.Node))
            node.op, node.target, node.args, node.kwargs = "call_module", name, tensors, {}
    round_once(network)


def round_once(network: fx.GraphModule) -> None:
    """Lets the quantizers that read nothing but what kernels rounded to their step only clip."""
    for name, calls in module_calls(network).items():
        quantizer = network.get_submodule(name)
        if isinstance(quantizer, IntegerActivation):
            quantizer.rounded = all(is_rounded_to(quantizer.step, n, network) for n in calls)


def is_rounded_to(step: Step, node: fx.Node, network: fx.GraphModule) -> bool:
    (source,) = node.all_input_nodes
    if is_relu(source, network):  # zero is a code
        (source,) = source.all_input_nodes
    kernel = called_module(source, network)
    return isinstance(kernel, IntegerLayer | IntegerOperator) and kernel.out == step


def comes_from_kernels(network: fx.GraphModule) -> dict[str, bool]:
    """For each node that rounds: whether all that it reads is exact, {its name: ...}.

    Of the network's inputs, of what integer kernels give and of values that were rounded before it is;
    what float operators give may differ in its last bits.
    """
    nodes = network.graph.nodes
    rounding = (n for n in nodes if isinstance(called_module(n, network), IntegerActivation))
    return {node.name: is_exact(node.all_input_nodes[0], network) for node in rounding}


def is_exact(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether PyTorch and ONNX Runtime give the same value, as they do of what is exact."""
    module = called_module(node, network)
    if isinstance(module, IntegerLayer):
        return module.has_kernel
    if node.op == "placeholder" or isinstance(module, IntegerActivation | IntegerOperator):
        return True
    passes = is_clip(node, network) or is_mover(node, network) or factor(node, network) is not None
    return passes and all(is_exact(source, network) for source in float_inputs(node))


def step_behind(node: fx.Node, network: fx.GraphModule) -> Step | None:
    """The step that all readers of a value see it rounded to; None where something reads it in float.

    Clips in between become clips of codes, and a factor joins the scale (deploy/integer_passes.py).
    """
    reader = only_reader(node)
    if reader is None:
        return None
    if is_clip(reader, network):
        return step_behind(reader, network) if has_fixed_bounds(reader, network) else None
    if factor(reader, network) is None:
        return rounding_of(reader, network)
    behind = only_reader(reader)
    step = None if behind is None else rounding_of(behind, network)
    return step and through_factor(step, reader, network)


def through_factor(step: Step, product: fx.Node, network: fx.GraphModule) -> Step:
    """The step in front of a product with a number, whose result has `step`."""
    (number,) = (part for part in product.args if isinstance(part, int | float))
    return kernels.through_factor(step, number, operator_of(product, network) is DIVIDE)


def has_fixed_bounds(clip: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a clip's bounds are numbers in the file, and not computed in a run."""
    bounds = clip.all_input_nodes[1:]
    return not bounds or made_of_inputs(network).isdisjoint(bounds)


def rounding_of(node: fx.Node, network: fx.GraphModule) -> Step | None:
    """The step of a node that rounds to 8 bits."""
    module = called_module(node, network)
    return module.rounding if isinstance(module, IntegerActivation) and module.has_8_bits else None


def integer_operator(
    node: fx.Node, out: Step | None, network: fx.GraphModule
) -> IntegerOperator | None:
    """The operator as its kernel computes it; None if it has none, or not with these operands."""
    kind = kernel_of(node, network)
    if kind is None or (out is None and kind is not IntegerMatrixProduct):
        return None
    if node.kwargs.get("alpha", 1) != 1:
        return None  # a sum with a factor is a product and a sum in the file
    tensors = [part for part in node.args if isinstance(part, fx.Node)]
    steps = [step for source in tensors if (step := step_of(source, network)) is not None]
    named = any(isinstance(value, fx.Node) for value in node.kwargs.values())
    if not len(steps) == len(tensors) == kind.operands or named:
        return None
    if kind is IntegerGlobalAverage and out and kernels.is_too_fine_to_average(steps[0], out):
        return None
    return kind(call_of(node, network), steps, out)


def kernel_of(node: fx.Node, network: fx.GraphModule) -> type[IntegerOperator] | None:
    row = operator_of(node, network)
    if row is MEAN:
        return IntegerGlobalAverage if means_over_pixels(node, network) else None
    if row is not ADAPTIVE_AVERAGE:
        return KERNELS.get(row)
    before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
    if len(before) < 3 and set(after) == {1}:
        return IntegerGlobalAverage
    return None if any(map(operator.mod, before, after)) else IntegerAverage


def means_over_pixels(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it takes the means of an image's height and width."""
    axes = argument(node, network, Argument("dim", 1))
    is_image = len(shape_of(node.all_input_nodes[0])) == 4
    return is_image and isinstance(axes, tuple | list) and sorted(a % 4 for a in axes) == [2, 3]


def step_of(node: fx.Node, network: fx.GraphModule) -> Step | None:
    """The step that an 8-bit value stands on."""
    source = source_activation(node, network)
    if source is not None:
        return source.step if source.has_8_bits else None
    if operator_of(node, network) is not HARDSIGMOID:
        return None
    step = step_of(node.all_input_nodes[0], network)
    return step and kernels.gate_of(step)


def source_activation(node: fx.Node, network: fx.GraphModule) -> IntegerActivation | None:
    """The quantizer that made this value; None if it is not quantized."""
    # The parts that chunk, split and unbind give are quantized where they are taken out.
    while is_tuple(node):
        node = node.all_input_nodes[0]
    module = called_module(node, network)
    return module if isinstance(module, IntegerActivation) else None


def call_of(node: fx.Node, network: fx.GraphModule) -> Call | torch.nn.Module:
    """What the node calls, as a function of the tensors that it reads."""
    module = called_module(node, network)
    if module is not None:
        return module
    function: Any = node.target
    if node.op == "call_method":
        function = getattr(Tensor, str(node.target))
    others = tuple(part for part in node.args if not isinstance(part, fx.Node))
    return Call(function, others, dict(node.kwargs))
