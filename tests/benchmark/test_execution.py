"""Operator counts of graphs whose optimised form is known."""

import onnxruntime
from graphs import float_network, integer_network, write

from qdeploy.benchmark import placement
from qdeploy.benchmark.providers import CPU
from qdeploy.record import Placement

TELLS = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")  # from 1.24


def test_a_convolution_between_quantizers_runs_as_one_integer_kernel(tmp_path):
    placed = placement(write(integer_network(), tmp_path / "model.onnx"), "cpu")
    assert placed.file == "model.onnx"
    assert placed.integer_kernels == {"QLinearConv": 1}
    assert placed.float_kernels == {}
    assert placed.operators is not None
    assert placed.operators["QuantizeLinear"] == placed.operators["DequantizeLinear"] == 1
    assert "Relu" not in placed.operators


def test_nodes_are_listed_with_their_provider(tmp_path):
    placed = placement(write(integer_network(), tmp_path / "model.onnx"), "cpu")
    dealt_out = {"DequantizeLinear": 4, "QuantizeLinear": 2, "Conv": 1, "Relu": 1}
    assert placed.providers == ({CPU: dealt_out} if TELLS else None)
    assert placed.ran_on == (CPU,)


def test_a_float_network_computes_in_float(tmp_path):
    placed = placement(write(float_network(), tmp_path / "model.onnx"), "cpu", file="the label")
    assert placed.file == "the label"
    assert placed.integer_kernels == {}
    assert sum(placed.float_kernels.values()) == 2
    assert any("Conv" in kernel for kernel in placed.float_kernels)
    assert any("Gemm" in kernel for kernel in placed.float_kernels)


def test_kernels_leave_out_domains_and_what_does_not_compute():
    operators = {
        "com.microsoft::QLinearConv": 20,
        "com.microsoft::QLinearAdd": 8,
        "com.microsoft.nchwc::Conv": 2,
        "Conv": 1,
        "com.microsoft::QGemm": 1,
        "QuantizeLinear": 1,
        "MaxPool": 1,
    }
    placed = Placement("model.onnx", operators, {})
    assert placed.integer_kernels == {"QLinearConv": 20, "QLinearAdd": 8, "QGemm": 1}
    assert placed.float_kernels == {"Conv": 3}


def test_nothing_is_written_beside_the_file(tmp_path):
    placement(write(float_network(), tmp_path / "model.onnx"), "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
