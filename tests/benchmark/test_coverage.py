"""Why products stay in float: what ONNX Runtime says of graphs with one thing wrong each."""

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import float_network, network, write
from graphs_of_one_product import Builder, product
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from qdeploy.benchmark import placement
from qdeploy.record import Coverage

VERSION = tuple(map(int, ort.__version__.split(".")[:2]))


def dumped(model, tmp_path):
    """The convolutions and matrix products of the graph that ONNX Runtime itself writes out."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "dump.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "dump.onnx").graph.node
    return [
        n.op_type for n in nodes if any(word in n.op_type for word in ("Conv", "Gemm", "MatMul"))
    ]


def only_product(model, tmp_path):
    placed = placement(write(model, tmp_path / "model.onnx"), "cpu")
    (found,) = placed.products
    assert [found.kernel] == dumped(model, tmp_path)
    assert placed.coverage == Coverage(found.integer and found.quantized, found.quantized)
    return found


class Images(CalibrationDataReader):
    """Three batches of noise."""

    def __init__(self):
        self.left = iter(np.random.default_rng(0).standard_normal((3, 2, 3, 8, 8), np.float32))

    def get_next(self):
        images = next(self.left, None)
        return None if images is None else {"x": images}


def branches():
    """A stem, two branches that are added, one of them depthwise, and a head; in float."""
    rng = np.random.default_rng(0)
    shapes = {
        "ws": (8, 3, 3, 3),
        "wl": (8, 8, 1, 1),
        "wd": (8, 1, 3, 3),
        "wh": (10, 8),
        "bh": (10,),
    }
    nodes = [
        helper.make_node("Conv", ["x", "ws"], ["s"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "wl"], ["l"], "left"),
        helper.make_node("Conv", ["r", "wd"], ["d"], "depthwise", pads=[1] * 4, group=8),
        helper.make_node("Add", ["l", "d"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wh", "bh"], ["y"], "head", transB=1),
    ]
    return network(nodes, {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()})


INTEGER = {
    "a convolution": ({}, "QLinearConv"),
    "no bias": ({"bias_scale": None}, "QLinearConv"),
    "a depthwise convolution": ({"groups": 8}, "QLinearConv"),
    "a Relu that ends where the codes do": ({"after": "Relu", "zero": 0}, "QLinearConv"),
    "a bias that is nearly on its scale": ({"bias_scale": 1.005}, "QLinearConv"),
    "what only passes": ({"before": "Identity"}, "QLinearConv"),
    "Gemm into float": ({"operator": "Gemm", "readers": ()}, "QGemm"),
    "a matrix product": ({"operator": "MatMul"}, "QLinearMatMul"),
    "a matrix product into float": (
        {"operator": "MatMul", "after": "Sigmoid"}, "MatMulIntegerToFloat"
    ),
}  # fmt: skip

FLOAT = {
    "ConvTranspose": ({"operator": "ConvTranspose"}, "no integer kernel for ConvTranspose"),
    "4-bit weights": ({"weight": "INT4"}, "its weight is INT4; integer kernels take 8 bits"),
    "16-bit weights": ({"weight": "INT16"}, "its weight is INT16"),
    "16-bit activations": ({"data": "UINT16"}, "its input is UINT16"),
    "Flatten in front": (
        {"operator": "Gemm", "before": "Flatten"}, "Flatten stands between DequantizeLinear and its input"
    ),
    "a bias on another scale": ({"bias_scale": 1.1}, "scale of its bias is not that of its input"),
    "an output of the network": ({"readers": ()}, "its output goes to Identity before"),
    "Gemm without zero point": (
        {"operator": "Gemm", "weight_zero": False}, "DequantizeLinear of its weight has no zero point"
    ),
    "two readers": ({"readers": ("quantizer", "add")}, "Add and QuantizeLinear read its output"),
    "a Relu within the codes": ({"after": "Relu"}, "the Relu behind it does not end where"),
    "a Sigmoid": ({"after": "Sigmoid"}, "its output goes to Sigmoid before it is quantized"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "kernel"), INTEGER.values(), ids=INTEGER)
def test_it_runs_in_integers(options, kernel, tmp_path):
    found = only_product(product(**options), tmp_path)
    assert (found.layer, found.kernel, found.integer, found.reason) == ("layer", kernel, True, None)


def cases_in_float():
    fails = pytest.mark.skipif(VERSION < (1, 28), reason="before 1.28 ONNX Runtime fails to run it")
    for name, case in FLOAT.items():
        yield pytest.param(*case, id=name, marks=[fails] * (name == "Gemm without zero point"))


@pytest.mark.parametrize(("options", "reason"), list(cases_in_float()))
def test_it_stays_in_float_and_the_reason_is_told(options, reason, tmp_path):
    found = only_product(product(**options), tmp_path)
    assert (found.quantized, found.integer) == (True, False)
    assert reason in found.reason


def test_a_float_convolution_is_no_exception(tmp_path):
    placed = placement(write(float_network(), tmp_path / "model.onnx"), "cpu")
    assert [(p.layer, p.quantized, p.integer, p.reason) for p in placed.products] == [
        ("Conv 1", False, False, None),
        ("Gemm 1", False, False, None),
    ]
    assert placed.coverage == Coverage(0, 0)


def outlier_network(guarded):
    """A float convolution between quantized tensors, with one weight 1000 times the others."""
    graph = Builder()
    graph.constant("s", 0.05, "FLOAT")
    graph.constant("z", 128, "UINT8")
    weight = np.full((8, 8, 1, 1), 0.001)
    weight[0, 0] = 1.0
    graph.constant("w", weight, "FLOAT")
    graph.constant("b", np.zeros(8), "FLOAT")
    graph.constant("lowest", np.finfo(np.float32).min, "FLOAT")
    value = graph.quantized("x", "s", "z")
    if guarded:
        value = graph.node("Max", value, "lowest")
    value = graph.node("Conv", value, "w", "b", name="layer")
    return graph.model(graph.quantized(value, "s", "z"))


def test_a_float_weight_that_the_runtime_quantizes_is_told(tmp_path):
    found = only_product(outlier_network(guarded=False), tmp_path)
    assert (found.quantized, found.integer) == (False, True)
    assert found.reason == "float in the file; ONNX Runtime quantized its weight at load"
    found = only_product(outlier_network(guarded=True), tmp_path)
    assert (found.integer, found.reason) == (False, None)


def test_a_product_without_a_name_is_counted_within_its_kind(tmp_path):
    assert only_product(product(name=""), tmp_path).layer == "Conv 1"


@pytest.mark.parametrize(
    "format_", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "q-operator"]
)
def test_files_of_quantize_static(format_, tmp_path):
    source = write(branches(), tmp_path / "float.onnx")
    target = tmp_path / "static.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            source, target, Images(), quant_format=format_, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    placed = placement(target, "cpu")
    assert {p.layer.removesuffix("_quant"): p.integer for p in placed.products} == {
        "stem": True, "left": True, "depthwise": True, "head": True,
    }  # fmt: skip
    assert placed.coverage == Coverage(4, 4)


def test_files_of_quantize_dynamic(tmp_path):
    source = write(float_network(), tmp_path / "float.onnx")
    quantize_dynamic(source, tmp_path / "dynamic.onnx")
    placed = placement(tmp_path / "dynamic.onnx", "cpu")
    assert placed.coverage == Coverage(2, 2)
    assert {p.kernel for p in placed.products} == {"ConvInteger", "DynamicQuantizeMatMul"}


def test_weights_beside_the_file_are_found(tmp_path):
    model = float_network()
    onnx.save(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="model.data",
    )
    placed = placement(tmp_path / "model.onnx", "cpu")
    assert [product.layer for product in placed.products] == ["Conv 1", "Gemm 1"]
