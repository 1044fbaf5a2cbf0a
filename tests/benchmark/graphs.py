"""Small ONNX networks, made by hand."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

IMAGES = np.random.default_rng(1).standard_normal((4, 3, 8, 8), dtype=np.float32)


def network(nodes, weights, images=("n", 3, 8, 8)):
    """A model from "x" to "y" with opset 21 and the weights {name: array}."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, images)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"qdeploy.recipe": "hand-made"})
    return model


def float_network(images=("n", 3, 8, 8)):
    """Conv, ReLU, Flatten, Gemm: logits [n, 10]."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (10, 512), "b2": (10,)}
    return network(
        nodes, {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}, images
    )


def integer_network():
    """A Conv between QuantizeLinear and DequantizeLinear, as qdeploy exports it."""
    rng = np.random.default_rng(0)
    weights = {
        "sx": np.float32(0.05),
        "zx": np.uint8(128),
        "sy": np.float32(0.1),
        "zy": np.uint8(0),
        "w": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "sw": np.full(8, 0.01, np.float32),
        "zw": np.zeros(8, np.int8),
        "b": rng.integers(-500, 500, 8).astype(np.int32),
        "sb": np.full(8, 0.0005, np.float32),
        "zb": np.zeros(8, np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "sy", "zy"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    return network(nodes, {name: np.asarray(array) for name, array in weights.items()})


def write(model, path):
    path.write_bytes(model.SerializeToString())
    return path
