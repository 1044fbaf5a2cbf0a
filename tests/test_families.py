"""Networks in the styles of the model zoos, untouched: prepared, exported, and what ONNX Runtime runs."""

import functools
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from families import FAMILIES, build, inputs
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import qdeploy
from qdeploy.benchmark.machine import saturates
from qdeploy.deploy.export import finished_with_tensors, to_onnx
from qdeploy.layers.integer import IntegerLayer
from qdeploy.proof.tensors import ComparedNetwork

# What stays in float between the quantizers, and why.
EXCEPTIONS = {
    "bilinear_unet": {
        "ConvTranspose": 1
    },  # overlapping squares: ONNX Runtime has no integer kernel
}
# What the network ends in is no integer kernel: an average, or a bilinear upsampling.
FLOAT_ENDS = {"squeezenet", "functional", "bilinear_unet"}
INTEGER_PRODUCTS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}
FLOAT_PRODUCTS = {
    "Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul",
    "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul",
}  # fmt: skip
FLOAT_ACTIVATIONS = {"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Add", "Concat"}
every_family = pytest.mark.parametrize("name", FAMILIES)


@dataclass(frozen=True)
class Family:
    network: nn.Module
    prepared: nn.Module
    converted: nn.Module
    proto: onnx.ModelProto
    tensors: dict[str, str]
    found: list[np.ndarray]
    optimized: onnx.ModelProto

    @property
    def operators(self):
        return Counter(node.op_type for node in self.optimized.graph.node)


def flat(outputs: Any) -> list[Tensor]:
    return pytree.tree_leaves(outputs)


@functools.cache
def prepared(name):
    network, batches = build(name), [inputs(name, 32, seed) for seed in (3, 4)]
    estimate_statistics(network, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Codes of all 8 bits, where the processor adds them up right: what 7 bits can do, these can.
        result = qdeploy.prepare(network, inputs(name, 2), "simqat", reduce_range=saturates())
    qdeploy.calibrate(result, batches)
    return network.eval(), result.eval()


@torch.no_grad()
def estimate_statistics(network, batches):
    """Of each BatchNorm over these batches, as plain means."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = None
    for batch in batches:
        network.train()(*batch)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Each family by name, exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("families")

    @functools.cache
    def exported(name):
        network, training = prepared(name)
        converted = qdeploy.convert(training)
        graph = to_onnx(converted, inputs(name, 2))
        proto, tensors = finished_with_tensors(graph, True, {})
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(folder / f"{name}.onnx")
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        given = [given.name for given in session.get_inputs()]
        images = dict(zip(given, (x.numpy() for x in inputs(name, 32, 9)), strict=True))
        found = session.run(None, images)
        optimized = onnx.load(options.optimized_model_filepath)
        return Family(network, training, converted, proto, tensors, found, optimized)

    return exported


def difference(found, expected):
    """Root mean square of the difference in that of how `expected` varies from input to input."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    spread = (expected - expected.mean(0)).square().mean().sqrt()
    return ((found - expected).square().mean().sqrt() / spread).item()


# Of random weights, whose outputs lie close together: a deep network of few channels adds up more.
@every_family
def test_the_prepared_network_computes_what_the_float_network_does(name):
    network, training = prepared(name)
    x = inputs(name, 32, 9)
    with torch.no_grad():
        for expected, found in zip(flat(network(*x)), flat(training(*x)), strict=True):
            assert difference(found, expected) < 0.5


@every_family
def test_the_file_computes_what_training_evaluates(name, family):
    made = family(name)
    with torch.no_grad():
        converted = flat(made.converted(*inputs(name, 32, 9)))
        trained = flat(made.prepared(*inputs(name, 32, 9)))
    for found, integer, expected in zip(made.found, converted, trained, strict=True):
        assert difference(found, integer) < 0.1
        assert difference(integer, expected) < 0.1


@every_family
def test_every_code_of_the_file_is_that_of_the_integers(name, family):
    made = family(name)
    network = ComparedNetwork(made.converted, made.proto, made.tensors, "cpu")
    outputs, in_file = network(inputs(name, 32, 9))
    found = network.result()
    assert found.differing == 0
    assert all(tensor.share < 1e-3 for tensor in found.behind_float)
    if not found.behind_float and name not in FLOAT_ENDS:
        for ours, other in zip(flat(outputs), in_file, strict=True):
            np.testing.assert_array_equal(ours.numpy(), other)


@every_family
def test_every_quantized_product_runs_on_an_integer_kernel(name, family):
    made = family(name)
    written = Counter(node.op_type for node in made.proto.graph.node)
    products = sum(written[kind] for kind in ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    in_float = {kind: made.operators[kind] for kind in FLOAT_PRODUCTS if made.operators[kind]}
    assert in_float == EXCEPTIONS.get(name, {})
    integer = sum(made.operators[kind] for kind in INTEGER_PRODUCTS)
    assert integer == products - sum(in_float.values())
    assert products >= sum(isinstance(m, IntegerLayer) for m in made.converted.modules())


@every_family
def test_a_file_gives_the_same_with_the_weights_made_uint8_at_load(name, family):
    """ONNX Runtime's way of exact sums on x86 without VNNI."""
    made = family(name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        made.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = [given.name for given in session.get_inputs()]
    images = dict(zip(given, (x.numpy() for x in inputs(name, 32, 9)), strict=True))
    for found, expected in zip(session.run(None, images), made.found, strict=True):
        np.testing.assert_array_equal(found, expected)


CONVOLUTIONAL = [
    "mobilenet_v2", "mobilenet_v3", "efficientnet", "shufflenet_v2", "densenet", "resnext", "regnet",
    "vgg", "unet", "signal", "several_inputs_outputs", "same_padded",
]  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_nothing_between_the_input_and_the_last_layer_is_float(name, family):
    found = family(name).operators
    inputs_, outputs_ = len(inputs(name, 2)), int(name == "unet")
    assert found["QuantizeLinear"] == inputs_
    assert found["DequantizeLinear"] == outputs_
    assert not set(found) & (FLOAT_ACTIVATIONS - {"Clip"})
