"""Files with inputs of any kind and number are timed as they declare them."""

import numpy as np
import onnx
import pytest
from graphs import float_network
from onnx import TensorProto, helper

from qdeploy.benchmark import benchmark_files, open_session
from qdeploy.benchmark.inputs import random_inputs, shapes_of
from qdeploy.errors import QdeployError


def takes(**inputs):
    """A file that gives each of its inputs back; inputs: {name: (type, shape)}."""
    given = [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()]
    made = [
        helper.make_tensor_value_info(f"{name}_", kind, None) for name, (kind, _) in inputs.items()
    ]
    nodes = [helper.make_node("Identity", [name], [f"{name}_"]) for name in inputs]
    graph = helper.make_graph(nodes, "network", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def given(model, *settings):
    return random_inputs(open_session(model.SerializeToString(), "cpu").inference, *settings)


FLOAT = TensorProto.FLOAT
# The inputs' declared shapes, the batch, and the lengths.
SHAPES = {
    "images": ([("n", 3, 8, 8)], 5, [(5, 3, 8, 8)]),
    "signal": ([("n", 100)], 5, [(5, 100)]),
    "open size": ([("n", 3, "h", "w")], 2, [(2, 3, 24, 32)], {"x0": (1, 3, 24, 32)}),
    "nameless": ([(None, 3, None)], 2, [(2, 3, 32)], {"x0": (2, 3, 32)}),
    "one length for all": (
        [("batch", "length", 4), ("batch", "length")], 2, [(2, 9, 4), (2, 9)], {"x1": (1, 9)}
    ),
    "batch in the middle": (
        [("length", "batch", 4)], 2, [(9, 2, 4)], {"x0": (9, 1, 4)}
    ),
    "states": ([("batch", 4), (1, "batch", 8)], 3, [(3, 4), (1, 3, 8)]),
    "sequences first": ([(5, "batch", 4), (1, "batch", 8)], 3, [(5, 3, 4), (1, 3, 8)]),
    "table": ([("n", 4), (7, 4)], 3, [(3, 4), (7, 4)]),
    "fixed": ([(2, 3)], 2, [(2, 3)]),
    "number": ([("n", 4), ()], 3, [(3, 4), ()]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    declared, batch, expected, *shapes = SHAPES[name]
    model = takes(**{f"x{i}": (FLOAT, shape) for i, shape in enumerate(declared)})
    assert [x.shape for x in given(model, batch, *shapes).values()] == expected


@pytest.mark.parametrize(
    ("kind", "highest"),
    [
        (TensorProto.UINT8, 255),
        (TensorProto.INT64, 1),
        (TensorProto.INT32, 1),
        (TensorProto.BOOL, 1),
    ],
)
def test_integers_are_bytes_or_numbers_that_every_table_has(kind, highest):
    (x,) = given(takes(x=(kind, (1, 4000))), 1).values()
    assert (x.dtype, x.min(), x.max()) == (helper.tensor_dtype_to_np_dtype(kind), 0, highest)


def test_a_batch_that_the_file_has_not_is_refused():
    with pytest.raises(QdeployError, match="batches of 2 alone, not of 1"):
        given(float_network(images=(2, 3, 8, 8)), 1)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({}, r"leaves h and w open: .*--shape x=1x3x224x224"),
        ({"x": (1, 3, 8)}, "the shape 1x3x8 is given for x, which takes batchx3xhxw"),
        ({"x": (1, 4, 8, 8)}, "the shape 1x4x8x8 is given for x"),
    ],
)
def test_an_open_size_has_to_be_given_as_the_file_takes_it(shapes, said):
    with pytest.raises(QdeployError, match=said):
        given(takes(x=(FLOAT, ("batch", 3, "h", "w"))), 1, shapes)


def test_axes_of_one_name_have_one_size():
    model = takes(x=(FLOAT, ("batch", "length")), y=(FLOAT, ("batch", "length")))
    with pytest.raises(QdeployError, match="the shape 1x4 is given for y"):
        given(model, 1, {"x": (1, 3), "y": (1, 4)})


def test_the_batch_is_that_of_the_shape_unless_one_is_given(tmp_path):
    path = tmp_path / "open.onnx"
    onnx.save(takes(x=(FLOAT, ("batch", 3, "h", "w"))), path)
    shapes = {"x": (4, 3, 8, 8)}
    for batches, found in ((None, [4]), ((1, 2), [1, 2])):
        result = benchmark_files([path], "cpu", 1, batches, 2, shapes)
        assert [row.batch for row in result.latency] == found


def test_a_shape_of_no_input_is_refused(tmp_path):
    path = tmp_path / "open.onnx"
    onnx.save(takes(x=(FLOAT, ("batch", 3))), path)
    with pytest.raises(QdeployError, match="given for 'image'; inputs there are: x"):
        benchmark_files([path], "cpu", shapes={"image": (1, 3)})


def test_words_are_refused():
    with pytest.raises(QdeployError, match=r"input x is tensor\(string\)"):
        given(takes(x=(TensorProto.STRING, (1,))), 1)


def test_a_size_is_that_of_every_length_that_no_shape_gives():
    model = takes(
        image=(FLOAT, ["n", 3, "h", "w"]), words=(FLOAT, ["n", "length"]), mask=(FLOAT, ["length"])
    )
    inference = open_session(model.SerializeToString(), "cpu").inference
    found = shapes_of(inference, {"mask": (7,)}, 16)
    assert found == {"image": [1, 3, 16, 16], "words": [1, 7], "mask": [7]}


def test_a_file_of_several_inputs_and_open_sizes_is_benchmarked(tmp_path):
    path = tmp_path / "several.onnx"
    shapes = {"x": (FLOAT, ("n", 3, "h", "w")), "ids": (TensorProto.INT64, ("n", "l"))}
    onnx.save(takes(**shapes), path)
    result = benchmark_files(
        [path], "cpu", batch_sizes=(1, 2), rounds=2, shapes={"x": (1, 3, 8, 16), "ids": (1, 5)}
    )
    assert [row.batch for row in result.latency] == [1, 2]
    assert np.isfinite([row.p50_ms for row in result.latency]).all()
    assert set(result.placements[0].operators) == {"Identity"}
