"""Kernels of ONNX Runtime's profile, and the nodes of the file that they began with."""

from pathlib import Path

import onnx
import pytest
from graphs import float_network, integer_network, network, write
from onnx import helper

from qdeploy.benchmark import placement
from qdeploy.benchmark.coverage import products_of
from qdeploy.benchmark.graph import Graph
from qdeploy.benchmark.profile import kernels_of, labelled, origin
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import read


def test_kernels_are_those_that_run_with_their_types(tmp_path):
    placed = placement(write(integer_network(), tmp_path / "model.onnx"), "cpu")
    began = [kernel for kernel in placed.kernels if kernel.layer is not None]
    assert [(kernel.layer, kernel.operator, kernel.reads, kernel.writes) for kernel in began] == [
        ("QuantizeLinear 1", "QuantizeLinear", "float", "uint8"),
        ("Conv 1", "QLinearConv", "uint8", "uint8"),
        ("DequantizeLinear 4", "DequantizeLinear", "uint8", "float"),
    ]
    added = {kernel.operator for kernel in placed.kernels if kernel.layer is None}
    assert added <= {"Transpose"}  # between the layouts of the file and of the kernel
    assert sum(kernel.share for kernel in placed.kernels) == pytest.approx(1)
    assert {kernel.provider for kernel in placed.kernels} == {"CPUExecutionProvider"}


def test_kernels_are_those_of_the_optimised_graph(tmp_path):
    for model in (float_network(), integer_network()):
        placed = placement(write(model, tmp_path / "model.onnx"), "cpu")
        listed = [kernel.operator for kernel in placed.kernels]
        dumped = [
            name.rpartition("::")[2] for name, n in placed.operators.items() for _ in range(n)
        ]
        assert sorted(listed) == sorted(dumped)


def blocks():
    """conv a -> Relu -> conv b, and conv c beside it; their sum is the output."""
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], "conv a"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "wb"], ["b"], "conv b"),
        helper.make_node("Conv", ["x", "wc"], ["c"], "conv c"),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    return network(nodes, {})


@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        ("#2#", 2),
        ("#3#_token_12", 3),
        ("#0#/MatMulAddFusion", 0),
        ("r_nchwc", 0),  # Conv and Relu in one kernel, called after what Relu gave
        ("b_nchwc", 2),
        ("c_nchwc_token_4", 3),
        ("Transpose_token_1", None),
        ("ReorderOutput", None),
    ],
)
def test_a_kernel_is_traced_to_the_node_that_it_began_with(kernel, node):
    assert origin(kernel, Graph(blocks(), Path())) == node


def test_labels_change_nothing_but_names():
    model = float_network()
    copy = onnx.load_from_string(labelled(model))
    assert [node.name for node in copy.graph.node] == ["#0#", "#1#", "#2#", "#3#"]
    for node in copy.graph.node:
        node.ClearField("name")
    assert copy == model


def events(provider, *durations, reads="float"):
    tensors = [{reads: [1, 8]}, {"float": []}]
    arguments = {
        "op_name": "Conv",
        "provider": provider,
        "input_type_shape": tensors,
        "output_type_shape": tensors[:1],
    }
    return [{"dur": time, "args": arguments} for time in durations]


def test_times_are_medians_over_runs_and_shares_are_of_their_sum():
    cpu = "CPUExecutionProvider"
    runs = {"#0#": events(cpu, 30, 10, 20), "#2#": events(cpu, 60, 60, 600)}
    found = [kernel for kernel, _ in kernels_of(runs, Graph(blocks(), Path()))]
    assert [(k.layer, k.ms, k.share) for k in found] == [
        ("conv a", 0.02, 0.25),
        ("conv b", 0.06, 0.75),
    ]


def test_a_gpu_has_no_share_of_time_and_no_integer_kernels():
    runs = {"#4#": events("CUDAExecutionProvider", 5)}
    graph = Graph(integer_network(), Path())
    ran = kernels_of(runs, graph)
    assert [kernel.share for kernel, _ in ran] == [None]
    (product,) = products_of(graph, ran)
    assert product.reason == "the CUDA provider has no integer kernels"


def test_what_computes_within_another_kernel_is_said():
    (product,) = products_of(Graph(integer_network(), Path()), [])
    assert (product.kernel, product.integer) == (None, False)
    assert product.reason == "ONNX Runtime computed it within another kernel"


def test_what_is_no_network_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(QdeployError, match=r"text\.onnx is no ONNX file"):
        read(tmp_path / "text.onnx")
