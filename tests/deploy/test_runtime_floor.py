"""The oldest ONNX Runtime that a file is said to run on: the rules, on files that were tried."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_networks import exported
from onnx import numpy_helper

from qdeploy.benchmark.graph import Graph
from qdeploy.deploy.runtime_floor import runtime_floor


def floor_of(proto):
    return runtime_floor(Graph(proto, Path()))


@pytest.mark.parametrize(
    ("name", "settings", "floor"),
    [
        ("residual", "slb w1a8", "ONNX Runtime 1.15 or later (opset 13)"),
        ("shuffled", "slb w2a8", "ONNX Runtime 1.15 or later (opset 18)"),
        ("up_and_down", "slb w1a8", "ONNX Runtime 1.21 or later (DepthToSpace of uint8)"),
        # A weight that is not symmetric, behind a BatchNorm with negative gains.
        (
            "plain",
            "simqat w3a4",
            "ONNX Runtime 1.27 or later (channels with different zero points)",
        ),
    ],
)
def test_the_floor_is_that_of_what_asks_for_most(name, settings, floor):
    assert floor_of(exported(name, settings).packed) == floor


@pytest.mark.parametrize(
    ("opset", "floor"), [(13, "1.15"), (19, "1.16"), (20, "1.17"), (21, "1.18")]
)
def test_an_opset_is_read_since(opset, floor):
    text = f'<ir_version: 7, opset_import: ["": {opset}]> g (float[N] x) => (float[N] y) {{y = Relu(x)}}'
    found = floor_of(onnx.parser.parse_model(text))
    assert found == f"ONNX Runtime {floor} or later (opset {opset})"


@pytest.mark.parametrize(
    ("operator", "floor"), [("DepthToSpace<blocksize = 2>(q)", "1.21"), ("Max(q, z)", "1.27")]
)
def test_operators_take_codes_since(operator, floor):
    text = f"""<ir_version: 7, opset_import: ["": 13]> g (float[N, 4, 2, 2] x) => (uint8[A, B, C, D] y)
    <float s = {{0.5}}, uint8 z = {{3}}> {{ q = QuantizeLinear(x, s, z)  y = {operator} }}"""
    assert floor in floor_of(onnx.parser.parse_model(text))


def test_nothing_is_said_of_opsets_that_were_not_tried():
    text = '<ir_version: 11, opset_import: ["": 23]> g (float[N] x) => (float[N] y) {y = Relu(x)}'
    assert floor_of(onnx.parser.parse_model(text)) == ""


def test_the_same_file_with_equal_zero_points_runs_on_older_ones():
    proto = onnx.ModelProto.FromString(exported("plain", "simqat w3a4").packed.SerializeToString())
    for tensor in proto.graph.initializer:
        codes = numpy_helper.to_array(tensor)
        if codes.dtype == np.int8 and codes.ndim == 1:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(codes), tensor.name))
    assert "1.15" in floor_of(proto)
