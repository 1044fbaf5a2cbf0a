"""Runs with data on the device give what runs from host memory give."""

import numpy as np
import pytest
from graphs import IMAGES, float_network, integer_network, network
from onnx import helper

from qdeploy.benchmark import open_session
from qdeploy.benchmark.on_device import on_device
from qdeploy.benchmark.providers import works
from qdeploy.errors import QdeployError

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not works("cuda"), reason="needs a CUDA device")],
)
NETWORKS = {"float": float_network, "integer": integer_network}


@pytest.fixture(params=["cpu", CUDA])
def provider(request):
    return request.param


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_outputs_are_those_of_a_run_from_host_memory(make, provider):
    session = open_session(make().SerializeToString(), provider)
    run = on_device(session, {"x": IMAGES}, graph=1)
    for _ in range(3):
        run()
    np.testing.assert_array_equal(run.outputs(), session.run_on({"x": IMAGES}))


def test_several_inputs_and_outputs_of_any_type(provider):
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["rows"]),
        helper.make_node("Mul", ["rows", "x"], ["y"]),
        helper.make_node("Shape", ["rows"], ["sizes"]),
    ]
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = network(nodes, {"table": table}, images=("n", 2))
    model.graph.input.append(helper.make_tensor_value_info("i", 7, ("n",)))
    model.graph.output.append(helper.make_tensor_value_info("sizes", 7, (2,)))
    session = open_session(model.SerializeToString(), provider)
    x, i = np.full((4, 2), 2, np.float32), np.array([2, 0, 1, 1])
    run = on_device(session, {"x": x, "i": i}, graph=1)
    run()
    y, sizes = run.outputs()
    np.testing.assert_array_equal(y, 2 * table[i])
    np.testing.assert_array_equal(sizes, [4, 2])


def test_what_cannot_run_is_refused(provider):
    model = network([helper.make_node("Gather", ["x", "i"], ["y"])], {"i": np.array([5])}, ("n",))
    session = open_session(model.SerializeToString(), provider)
    with pytest.raises(QdeployError, match="cannot run the network"):
        on_device(session, {"x": np.zeros(3, np.float32)}, graph=1)


def test_a_cuda_graph_takes_the_cuda_provider():
    with pytest.raises(QdeployError, match="CUDA graphs need the provider cuda; cpu was chosen"):
        open_session(float_network().SerializeToString(), "cpu", cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not works("cuda"), reason="needs a CUDA device")
class TestCudaGraph:
    def test_each_batch_size_has_a_graph_of_its_own(self):
        model = float_network().SerializeToString()
        recorded, plain = (open_session(model, "cuda", cuda_graph=graph) for graph in (True, False))
        runs = {n: on_device(recorded, {"x": IMAGES[:n]}, graph=n) for n in (1, 4)}
        for _ in range(4):
            for n, run in runs.items():
                run()
                expected = plain.run_on({"x": IMAGES[:n]})
                np.testing.assert_allclose(run.outputs(), expected, rtol=1e-4, atol=1e-5)

    def test_a_file_with_nodes_on_the_cpu_is_refused(self):
        with pytest.raises(QdeployError, match="int32 biases"):
            open_session(integer_network().SerializeToString(), "cuda", cuda_graph=True)
