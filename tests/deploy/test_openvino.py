"""The same file in OpenVINO, where it is installed, packed and not."""

import copy

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import qdeploy
from qdeploy.deploy.targets import openvino as runtime
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.prepared import graph_module

IMAGES = networks.images(64).numpy()


def exported(folder, network, act_bits, **options):
    x = networks.images(48, seed=7)
    prepared = qdeploy.prepare(networks.build(network), x[:2], "slb", 1, act_bits)
    qdeploy.calibrate(prepared, x.split(16))
    return qdeploy.export(prepared, folder / "m.onnx", x[:2], **options)


def in_onnx_runtime(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": IMAGES})[0]


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_it_reads_packed_weights_and_agrees(tmp_path, act_bits):
    pytest.importorskip("openvino")
    path = exported(tmp_path, "residual", act_bits)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.UINT8 in types, "nothing is packed"
    name, run = runtime.load(path)
    expected, found = in_onnx_runtime(path), run(IMAGES)
    assert name.startswith("OpenVINO 20")
    spread = np.abs(expected - expected.mean(0)).max()
    assert np.abs(found - expected).max() < (1e-4 if act_bits == "float" else 0.15) * spread
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_without_gates_the_target_needs_no_other_file(tmp_path):
    targets = ("cpu", "openvino")
    files = [exported(tmp_path, "plain", 8, target=target).read_bytes() for target in targets]
    assert files[0] == files[1]


class Gated(nn.Module):
    """A SiLU and a squeeze-and-excite gate behind convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.SiLU()
        self.squeeze, self.expand = nn.Conv2d(9, 4, 1), nn.Conv2d(4, 9, 1)
        self.out = nn.Conv2d(9, 7, 3, stride=2)
        self.fc = nn.Linear(7, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(torch.relu(self.out(x * gate)).mean((2, 3)))


@pytest.fixture(scope="module")
def gated():
    torch.manual_seed(3)
    x = networks.images(48, seed=7)
    prepared = qdeploy.prepare(Gated().eval(), x[:2], "simqat")
    qdeploy.calibrate(prepared, x.split(16))
    return prepared


def test_sigmoids_compute_in_float_there_and_all_else_in_codes(gated, tmp_path):
    path = qdeploy.export(gated, tmp_path / "m.onnx", networks.images(2), target="openvino")
    graph = onnx.load(path).graph
    maker = {output: node for node in graph.node for output in node.output}
    sigmoids = [node for node in graph.node if node.op_type == "Sigmoid"]
    assert [maker[node.input[0]].op_type for node in sigmoids] == ["Conv", "Conv"]
    products = [node for node in graph.node if node.op_type == "Mul"]
    assert "Sigmoid" in {maker[name].op_type for node in products for name in node.input}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert {maker[name].op_type for node in layers for name in node.input} == {"DequantizeLinear"}


class GateAsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        gate = torch.sigmoid(self.conv(x))
        return x * gate, gate


def test_a_gate_that_is_an_output_as_well_is_left_as_it_is(tmp_path):
    x = networks.images(16, seed=7)
    prepared = qdeploy.prepare(GateAsOutput().eval(), x[:2], "simqat")
    qdeploy.calibrate(prepared, [x])
    path = qdeploy.export(prepared, tmp_path / "m.onnx", x[:2], target="openvino")
    with torch.no_grad():
        wanted = prepared.eval()(torch.from_numpy(IMAGES))[0].numpy()
    np.testing.assert_allclose(in_onnx_runtime(path), wanted, atol=0.02 * np.abs(wanted).max())


def test_float_gates_are_at_least_as_near_to_the_unrounded_network(gated, tmp_path):
    """Against the same network whose sigmoids were never quantized, in ONNX Runtime."""
    files = {
        target: qdeploy.export(
            gated, tmp_path / f"{target}.onnx", networks.images(2), target=target
        )
        for target in ("cpu", "openvino")
    }
    cpu, openvino = (in_onnx_runtime(path) for path in files.values())
    reference = copy.deepcopy(gated).eval()
    modules = dict(reference.named_modules())
    for node in graph_module(reference).graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], ActivationQuantizer):
            made_by = node.all_input_nodes[0].name
            readers = {user.target for user in node.users}
            if "sigmoid" in made_by or torch.sigmoid in readers:
                reference.set_submodule(node.target, nn.Identity())
    with torch.no_grad():
        wanted = reference(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(openvino, wanted, atol=0.02 * np.abs(wanted).max())
    assert np.abs(openvino - wanted).mean() < np.abs(cpu - wanted).mean()


def test_what_it_cannot_read_is_an_error(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "notes.onnx"
    path.write_text("no network\n" * 50)
    with pytest.raises(QdeployError, match=r"OpenVINO cannot read .*notes\.onnx"):
        runtime.load(path)


def test_without_it_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(QdeployError, match=r'pip install "qdeploy\[openvino\]"'):
        runtime.load(tmp_path / "m.onnx")
