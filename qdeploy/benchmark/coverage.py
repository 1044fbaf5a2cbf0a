"""Which of the products that a file quantizes ran on integer kernels, and why the others did not."""

import numpy as np
from onnx import NodeProto

from qdeploy.benchmark.graph import Graph, is_product
from qdeploy.benchmark.providers import CPU
from qdeploy.onnx_file import RECURRENT
from qdeploy.record import Coverage, Kernel, ProductRun

FLOAT_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
FLOAT_ALONE = {"ConvTranspose", *RECURRENT}  # without an integer kernel, whatever they read
INTEGERS = {"uint8", "int8", "int32"}
EIGHT_BITS = {"uint8", "int8"}
# Biases count as matching where ONNX Runtime takes them so: 1 % passes, 2 % does not.
SCALE_TOLERANCE = 0.015


def coverage(products: tuple[ProductRun, ...]) -> Coverage:
    """Counts the products that the file quantizes."""
    quantized = [product for product in products if product.quantized]
    return Coverage(sum(product.integer for product in quantized), len(quantized))


def products_of(graph: Graph, ran: list[tuple[Kernel, int | None]]) -> tuple[ProductRun, ...]:
    """Every product of the file, in its order, with the kernel that computed it."""
    kernels = {place: kernel for kernel, place in ran if is_product(kernel.operator)}
    names = graph.names()
    return tuple(
        _product(names[index], node, graph, kernels.get(index))
        for index, node in enumerate(graph.nodes)
        if is_product(node.op_type)
    )


def _product(layer: str, node: NodeProto, graph: Graph, kernel: Kernel | None) -> ProductRun:
    quantized = is_quantized(node, graph)
    integer = kernel is not None and computes_in_integers(kernel)
    reason = None
    if quantized and not integer:
        reason = why_float(node, graph, kernel)
    elif integer and not quantized:
        reason = "float in the file; ONNX Runtime quantized its weight at load"
    elif node.op_type in FLOAT_ALONE and _weights_of_codes(node, graph):
        reason = "its weights are integers in the file; ONNX Runtime computes with them in float"
    return ProductRun(
        layer, node.op_type, quantized, kernel.operator if kernel else None, integer, reason
    )


def _weights_of_codes(node: NodeProto, graph: Graph) -> bool:
    """Whether the weights are made of integers; a bias is a float, or an int32."""
    sources = set().union(*map(graph.sources, filter(graph.is_constant, node.input[1:3])))
    return any(graph.array(source).dtype.name in EIGHT_BITS for source in sources)


def computes_in_integers(kernel: Kernel) -> bool:
    """True for a product that reads integers, or makes them of what it reads."""
    return kernel.reads in INTEGERS or kernel.operator.startswith("DynamicQuantize")


def is_quantized(node: NodeProto, graph: Graph) -> bool:
    """True where both factors come through DequantizeLinear, or the operator takes integers."""
    if node.op_type not in FLOAT_OPERATORS:
        return "Q" in node.op_type or "Integer" in node.op_type
    factors = [graph.maker(graph.unmoved(value)) for value in node.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in factors)


def why_float(node: NodeProto, graph: Graph, kernel: Kernel | None) -> str:
    """The first demand of ONNX Runtime's integer kernels that a quantized product fails."""
    if kernel is None:
        return "ONNX Runtime computed it within another kernel"
    if kernel.provider != CPU:
        name = kernel.provider.removesuffix("ExecutionProvider")
        return f"the {name} provider has no integer kernels"
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no integer kernel for ConvTranspose"
    found = (
        _unfit_factor(node, graph)
        or _weight_without_zero_point(node, graph)
        or _foreign_bias(node, graph)
        or _output_not_quantized(node, graph)
    )
    return found or "ONNX Runtime kept it in float; what its integer kernel misses is not known"


def _unfit_factor(node: NodeProto, graph: Graph) -> str | None:
    """A factor that was moved since it was dequantized, or whose codes are not of 8 bits."""
    for name, value in zip(("input", "weight"), node.input, strict=False):
        if (maker := graph.maker(value)) is None:
            continue
        if maker.op_type != "DequantizeLinear":
            return f"{maker.op_type} stands between DequantizeLinear and its {name}"
        held = _held_type(maker, graph)
        if held is not None and held not in EIGHT_BITS:
            return f"its {name} is {held.upper()}; integer kernels take 8 bits"
    return None


def _held_type(dequantizer: NodeProto, graph: Graph) -> str | None:
    """The type of the codes: that of the zero point, or of the codes if they are a constant."""
    for value in (*dequantizer.input[2:], dequantizer.input[0]):
        if graph.is_constant(value):
            return graph.array(value).dtype.name
    return None


def _weight_without_zero_point(node: NodeProto, graph: Graph) -> str | None:
    weight = graph.maker(node.input[1])
    if node.op_type == "Gemm" and weight is not None and len(weight.input) < 3:
        return "DequantizeLinear of its weight has no zero point, which Gemm needs"
    return None


def _foreign_bias(node: NodeProto, graph: Graph) -> str | None:
    bias = graph.maker(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
    if bias is None or bias.op_type != "DequantizeLinear":
        return None
    makers = (graph.maker(value) for value in node.input[:2])
    scales = [bias.input[1], *(maker.input[1] for maker in makers if maker is not None)]
    if not all(map(graph.is_constant, scales)):
        return None
    found, *factors = map(graph.array, scales)
    expected = np.prod(np.broadcast_arrays(*factors), axis=0)
    if np.allclose(found, expected, rtol=SCALE_TOLERANCE, atol=0):
        return None
    return "the scale of its bias is not that of its input times that of its weight"


def _output_not_quantized(node: NodeProto, graph: Graph) -> str | None:
    output = node.output[0]
    readers = graph.readers.get(output, [])
    if output in graph.outputs or not readers:
        return "its output is the network's and is not quantized"
    if len(readers) > 1:
        operators = " and ".join(sorted({reader.op_type for reader in readers}))
        return f"{operators} read its output; QuantizeLinear must be alone there"
    (reader,) = readers
    if reader.op_type == "QuantizeLinear":
        return None
    after = graph.readers.get(reader.output[0], [])
    if reader.op_type in ("Relu", "Clip") and [one.op_type for one in after] == ["QuantizeLinear"]:
        return f"the {reader.op_type} behind it does not end where the 8 bits of its output end"
    return f"its output goes to {reader.op_type} before it is quantized"
