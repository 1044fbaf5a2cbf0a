"""One quantized product each, with one thing wrong that keeps ONNX Runtime from its integer kernel."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}  # the weight's output channels
OPTIONS = {
    "Conv": {"pads": [1] * 4},
    "ConvTranspose": {"pads": [1] * 4},
    "Gemm": {"transB": 1},
}


def product(
    operator="Conv",
    *,
    before=None,
    after=None,
    readers=("quantizer",),
    weight="INT8",
    weight_zero=True,
    data="UINT8",
    zero=128,
    groups=1,
    bias_scale=1.0,
    name="layer",
):
    """x -> Q/DQ -> [before] -> operator(8 channels) -> [after] -> readers -> y.

    groups      8 for a depthwise convolution
    bias_scale  of the int32 bias, in steps of input scale x weight scale; None: no bias
    readers     "quantizer": Q/DQ; "add": an Add of the output and what the quantizer gave
    name        of the product; "" for none
    """
    graph = Builder()
    graph.constant("sx", 0.05, "FLOAT")
    graph.constant("zx", 128, data)
    value = "x"
    if operator == "Gemm":
        value = graph.node("GlobalAveragePool", value)
        if before != "Flatten":
            value = graph.node("Flatten", value)
    value = graph.quantized(value, "sx", "zx")
    if before is not None:
        value = graph.node(before, value)
    kernel = (3, 3) if "Conv" in operator else ()
    codes = np.random.default_rng(0).integers(0, 8, (8, 8 // groups, *kernel))
    graph.constant("w", codes, weight)
    graph.constant("sw", np.full(8, 0.01), "FLOAT")
    graph.constant("zw", np.zeros(8), weight)
    zeros = ("zw",) if weight_zero else ()
    inputs = [value, graph.node("DequantizeLinear", "w", "sw", *zeros, axis=AXES[operator])]
    if bias_scale is not None and operator != "MatMul":
        graph.constant("b", np.arange(8), "INT32")
        graph.constant("sb", np.full(8, 0.0005 * bias_scale), "FLOAT")
        inputs.append(graph.node("DequantizeLinear", "b", "sb", axis=0))
    options = OPTIONS.get(operator, {}) | ({"group": groups} if groups > 1 else {})
    value = graph.node(operator, *inputs, name=name, **options)
    if after is not None:
        value = graph.node(after, value)
    graph.constant("sy", 0.1, "FLOAT")
    graph.constant("zy", zero, "UINT8")
    found = value
    for reader in readers:
        found = (
            graph.quantized(value, "sy", "zy")
            if reader == "quantizer"
            else graph.node("Add", value, found)
        )
    return graph.model(found)


class Builder:
    """Nodes and constants of one network of 8 channels, which takes float [n, 8, 8, 8]."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, values, kind):
        values = np.asarray(values)
        number = TensorProto.DataType.Value(kind)
        if kind == "INT4":
            tensor = helper.make_tensor(name, number, values.shape, values.ravel().astype(int))
        else:
            dtype = helper.tensor_dtype_to_np_dtype(number)
            tensor = numpy_helper.from_array(values.astype(dtype), name)
        self.constants.append(tensor)
        return name

    def node(self, operator, *inputs, name=None, **options):
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **options))
        return output

    def quantized(self, value, scale, zero):
        return self.node(
            "DequantizeLinear", self.node("QuantizeLinear", value, scale, zero), scale, zero
        )

    def model(self, output):
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 8, 8, 8))
        logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "product", [images], [logits], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
