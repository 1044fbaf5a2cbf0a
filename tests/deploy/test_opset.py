"""The opset of a file: the lowest in which its nodes mean what they mean."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_reference import evaluator

from qdeploy.deploy.opset import LOWEST, lower_opset

IR_OF = {13: 7, 14: 7, 15: 8, 18: 8, 19: 9, 20: 9, 21: 10}


def lowered(text):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    lower_opset(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize(
    ("opset", "text"),
    [
        (13, "(float[N, 4] x) => (float[N, 4] y) {y = Relu(x)}"),
        (13, "(float[N, 4] x) => (float[N, 4] y) {y = Softmax<axis = 1>(x)}"),
        (14, "(float[N, 4] x) => (float[N, 4] y) {y = HardSwish(x)}"),
        (20, "(float[N, 4] x) => (float[N, 4] y) {y = Gelu(x)}"),
        # An input that was an attribute.
        (
            18,
            "(float[N, 4] x) => (float[N, 1] y) <int64[1] axes = {1}> {y = ReduceMean(x, axes)}",
        ),
        (13, "(float[N, 4] x) => (float[N, 1] y) <int64[1] axes = {1}> {y = ReduceSum(x, axes)}"),
        # An attribute that came later, and the same operator without it.
        (18, "(float[4] x) => (float[2] y, float[2] z) {y, z = Split<num_outputs = 2>(x)}"),
        (
            13,
            "(float[4] x) => (float[1] y, float[3] z) <int64[2] sizes = {1, 3}> {y, z = Split(x, sizes)}",
        ),
        (15, "(float[N, 4] x) => (int64[1] y) {y = Shape<end = 1>(x)}"),
        # Types that came later.
        (
            13,
            "(float[N] x) => (uint8[N] y) <float s = {0.5}, uint8 z = {3}> {y = QuantizeLinear(x, s, z)}",
        ),
        (
            21,
            "(float[N] x) => (uint16[N] y) <float s = {0.5}, uint16 z = {3}> {y = QuantizeLinear(x, s, z)}",
        ),
        (14, "(int32[N] x) => (int32[N] y) {y = Relu(x)}"),
        # Values of an attribute, and meanings, that came later.
        (
            19,
            '(float[4] x) => (float[6] y) <int64[2] p = {1, 1}> {y = Pad<mode = "wrap">(x, p)}',
        ),
        (
            20,
            "(float[N, 1, 4, 4] x, float[N, 2, 2, 2] to) => (float[N, 1, 2, 2] y) {y = GridSample(x, to)}",
        ),
        (
            21,
            "(float[N, 4, 3] x) => (float[N, 4, 3] y) <float[4] s = {1, 1, 1, 1}, float[4] b = {0, 0, 0, 0}>"
            "{y = GroupNormalization<num_groups = 2>(x, s, b)}",
        ),
    ],
)
def test_a_graph_has_the_lowest_opset_that_its_nodes_need(opset, text):
    model = lowered(text)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == IR_OF[opset]


def test_one_node_of_a_branch_holds_the_whole_file():
    inner = [
        helper.make_graph(
            [helper.make_node(op, ["x"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["N"])],
        )
        for op in ("Gelu", "Relu")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner[0], else_branch=inner[1])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xy")
    graph = helper.make_graph([node], "g", [x, condition], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    lower_opset(model)
    assert model.opset_import[0].version == 20


def test_a_file_below_the_lowest_stays_where_it_is():
    model = onnx.parser.parse_model(
        '<ir_version: 6, opset_import: ["": 11]> g (float[N] x) => (float[N] y) {y = Relu(x)}'
    )
    lower_opset(model)
    assert model.opset_import[0].version == 11 < LOWEST


def test_what_a_lower_opset_computes_is_the_same():
    text = "(float[N, 4] x) => (float[N, 4] y) {a = HardSwish(x) y = Softmax(a)}"
    x = np.linspace(-4, 4, 12, dtype=np.float32).reshape(3, 4)
    model = lowered(text)
    hard_swish = x * np.clip(x / 6 + 0.5, 0, 1)
    powers = np.exp(hard_swish)
    expected = powers / powers.sum(1, keepdims=True)
    found = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(evaluator(model).run(None, {"x": x})[0], found)
