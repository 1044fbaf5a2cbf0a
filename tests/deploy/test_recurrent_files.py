"""Files of recurrent networks: what ONNX Runtime and onnx's evaluator give, how they hold the weights."""

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_reference import evaluator
from sequence_networks import Convolved, Keywords, recurrent, sequences

import qdeploy
from qdeploy.benchmark import placement
from qdeploy.deploy.inspect import inspect
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.complexity import complexity
from qdeploy.proof.description import describe

CASES = {
    "LSTM": ("LSTM", "one layer"),
    "GRU": ("GRU", "one layer"),
    "RNN": ("RNN", "without bias"),
    "RNN of ReLUs": ("RNN of ReLUs", "one layer"),
    "deep LSTM": ("LSTM", "two layers, both ways"),
}


def prepared_of(network, bits=4, **options):
    prepared = qdeploy.prepare(network, sequences(), "simqat", bits, **options)
    qdeploy.calibrate(prepared, [sequences(16, 7)])
    return prepared.eval()


@functools.cache
def exported(name, folder):
    """The integers in PyTorch, and their file."""
    network = Convolved() if name == "convolved" else Keywords(recurrent(*CASES[name]))
    prepared = prepared_of(network)
    file = qdeploy.export(prepared, folder / f"{name}.onnx", sequences())
    return prepared, qdeploy.convert(prepared), file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recurrent")


def run(file, x):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


@torch.no_grad()
def close(found, network, x):
    wanted = network(x).numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_the_file_gives_what_convert_gives(name, folder):
    _, converted, file = exported(name, folder)
    for x in (sequences(), sequences(1, 3)):
        close(run(file, x), converted, x)


def test_the_length_may_stay_open(tmp_path):
    prepared = prepared_of(Keywords(recurrent("GRU")))
    file = qdeploy.export(
        prepared, tmp_path / "m.onnx", sequences(), dynamic={"input": {1: "steps"}}
    )
    x = sequences(3, 5, steps=12)
    close(run(file, x), qdeploy.convert(prepared), x)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_onnxs_own_evaluator_agrees(name, folder):
    _, converted, file = exported(name, folder)
    (found,) = evaluator(onnx.load(file)).run(None, {"input": sequences().numpy()})
    close(found, converted, sequences())


@pytest.mark.parametrize(("name", "nodes"), [("LSTM", 1), ("deep LSTM", 2), ("RNN", 1)])
def test_a_layer_is_one_operator_and_its_weights_are_packed(name, nodes, folder):
    prepared, _, file = exported(name, folder)
    model = onnx.load(file)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts[CASES[name][0]] == nodes
    assert not {"Loop", "Scan", "Sigmoid", "Tanh"} & counts.keys()
    weights = {layer.name: layer for layer in inspect(file).layers}
    parts = [n for n, _ in prepared.quantized_layers() if n.startswith("rnn")]
    assert list(weights)[: len(parts)] == parts
    for part in parts:
        layer = prepared.get_submodule(part)
        found = weights[part]
        assert found.shape == layer.weight.shape
        assert found.weight.bits == 4
        assert found.activation is None
        assert not found.on_integers
        scale = layer.quantizer.collapse(layer.weight).scale
        np.testing.assert_allclose(found.weight.scales, (scale.min(), scale.max()), rtol=1e-6)


def test_a_wide_layer_takes_as_many_bytes_as_its_bits(tmp_path):
    network = Keywords(recurrent(hidden=64))
    file = qdeploy.export(prepared_of(network), tmp_path / "m.onnx", sequences())
    ih, hh, _ = inspect(file).layers
    assert (ih.stored, hh.stored) == ("uint8", "uint8")
    assert (ih.bytes, hh.bytes) == (256 * 6 // 2, 256 * 64 // 2)
    assert file.stat().st_size < 256 * 70 // 2 + 6000


def test_a_convolution_in_front_runs_in_integers(folder):
    _, converted, file = exported("convolved", folder)
    found = placement(file, "cpu")
    assert found.integer_kernels == {"QLinearConv": 1, "QGemm": 1}
    assert found.float_kernels == {"GRU": 1}
    assert (found.coverage.integer, found.coverage.quantized) == (2, 2)
    reasons = {product.layer: product.reason for product in found.products}
    assert reasons["conv"] is None
    assert reasons["rnn.l0"] == (
        "its weights are integers in the file; ONNX Runtime computes with them in float"
    )
    close(run(file, sequences(3, 4)), converted, sequences(3, 4))


def test_nothing_is_rounded_on_the_way_to_a_recurrent_layer_alone():
    prepared = prepared_of(Keywords())
    quantizers = [n for n, m in prepared.named_modules() if isinstance(m, ActivationQuantizer)]
    assert quantizers == ["getitem_activation"]  # of what it gives, for the Linear behind it


def test_the_record_has_each_matrix(folder):
    prepared, converted, file = exported("deep LSTM", folder)
    shipped = {layer.name: layer for layer in describe(converted, inspect(file).layers)}
    work = {layer.name: layer for layer in complexity(prepared, sequences()).layers}
    for name, layer in prepared.quantized_layers():
        assert shipped[name].weights == layer.weight.numel()
        assert shipped[name].weight_bits == work[name].weight_bits == 4
        assert shipped[name].weight_bytes > 0
        steps = 7 if name.startswith("rnn") else 1
        assert work[name].macs == steps * layer.weight.numel()
    assert shipped["rnn.l1.hh"].kind == work["rnn.l1.hh"].kind == "LSTM"
    assert shipped["rnn.l1.hh"].act_bits is None
    float_parameters = sum(p.numel() for p in Keywords(recurrent(*CASES["deep LSTM"])).parameters())
    assert complexity(prepared, sequences()).parameters == float_parameters


def test_states_may_be_inputs_and_outputs(tmp_path):
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = recurrent(num_layers=2)

        def forward(self, x, h, c):
            y, (h, c) = self.rnn(x, (h, c))
            return y, h, c

    given = sequences(), torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    prepared = qdeploy.prepare(Step(), given, "simqat", 4).eval()
    file = qdeploy.export(prepared, tmp_path / "m.onnx", given)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(("x", "h", "c"), (t.numpy() for t in given), strict=True)))
    with torch.no_grad():
        wanted = qdeploy.convert(prepared)(*given)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
