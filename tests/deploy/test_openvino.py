"""The same file in OpenVINO, packed and not. What runs OpenVINO is skipped where it is not installed."""

import copy
import os
import subprocess
import sys

import networks
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

import qdeploy
from qdeploy.deploy.export import finished, to_onnx
from qdeploy.deploy.open_lengths import count_by_size
from qdeploy.deploy.targets import openvino as runtime
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.prepared import graph_module

IMAGES = networks.images(64).numpy()


def calibrated(network, *settings):
    x = networks.images(48, seed=7)
    prepared = qdeploy.prepare(network, x[:2], *settings)
    qdeploy.calibrate(prepared, x.split(16))
    return prepared.eval()


def written(prepared, path, target):
    """What `export` writes, which for target openvino would run OpenVINO."""
    graph = to_onnx(qdeploy.convert(prepared), networks.images(2), target=target)
    onnx.save(finished(graph, True, {}), path)
    return path


def in_onnx_runtime(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": IMAGES})[0]


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_it_reads_packed_weights_and_agrees(tmp_path, act_bits):
    pytest.importorskip("openvino")
    prepared = calibrated(networks.build("residual"), "slb", 1, act_bits)
    path = written(prepared, tmp_path / "m.onnx", "openvino")
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.UINT8 in types, "nothing is packed"
    assert_equal_but_for_ties(in_onnx_runtime(path), in_openvino_alone(path))


def in_openvino_alone(path):
    """In a process without the bound that conftest.py sets for torch's oneDNN.

    OpenVINO's minds it as well, and has no kernel for float layers of 8-bit weights below AVX2.
    """
    np.save(path.with_name("images.npy"), IMAGES)
    script = (
        "import sys, pathlib, numpy\n"
        "from qdeploy.deploy.targets.openvino import load\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "name, run = load(folder / sys.argv[2])\n"
        "assert name.startswith('OpenVINO 20'), name\n"
        "numpy.save(folder / 'outputs.npy', *run(numpy.load(folder / 'images.npy')))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    command = [sys.executable, "-c", script, path.parent, path.name]
    subprocess.run(command, env=environment, check=True)
    return np.load(path.with_name("outputs.npy"))


def assert_equal_but_for_ties(expected, found):
    """Kernels that add floats in another order round a near-tie the other way, in a few images at most."""
    spread = np.abs(expected - expected.mean(0)).max()
    equal = np.abs(expected - found).max(1) < 1e-4 * spread
    assert equal.mean() >= 0.9, f"{equal.mean():.0%} of the images"


WIDTHS = {
    "w8a8": ("simqat", 8, 8),
    "w4a8": ("lsq", 4, 8),
    "w4a4": ("lsq", 4, 4),
    "w2a2": ("dorefa", 2, 2),
    "w1a1": ("dorefa", 1, 1),
}


class TestBranchesOfAnAdd:
    """OpenVINO adds inside of a convolution, without the rounding in front of that Add."""

    @pytest.fixture(scope="class", params=WIDTHS)
    def files(self, request, tmp_path_factory):
        prepared = calibrated(networks.build("residual"), *WIDTHS[request.param])
        folder = tmp_path_factory.mktemp(request.param)
        return {name: written(prepared, folder / name, name) for name in ("cpu", "openvino")}

    def test_openvino_computes_what_onnx_runtime_does(self, files):
        pytest.importorskip("openvino")
        expected = in_onnx_runtime(files["openvino"])
        assert_equal_but_for_ties(expected, *runtime.load(files["openvino"])[1](IMAGES))

    def test_for_onnx_runtime_nothing_changes(self, files):
        cpu, openvino = map(in_onnx_runtime, files.values())
        assert np.array_equal(cpu, openvino)

    def test_every_convolution_that_only_an_add_reads_is_kept_apart(self, files):
        graph = onnx.load(files["openvino"]).graph
        maker = {output: node for node in graph.node for output in node.output}
        kinds = [
            maker[maker[name].input[0]].op_type
            for node in graph.node if node.op_type == "Add" for name in node.input
        ]  # fmt: skip
        # Both branches of the first Add; of the second only the convolution's.
        assert kinds.count("Max") == 3


class Tokens(nn.Module):
    """Patches and a class token of 8 channels, and a Linear over the 8 positions that they make."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 3, stride=3, padding=(1, 2))
        self.token, self.place = (nn.Parameter(torch.randn(1, n, 8)) for n in (1, 8))
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2)[..., 1:8].transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
        return self.head(torch.relu(self.mix(x)))


class TestTokens:
    """OpenVINO gives a convolution whose shape it reads the first channel's bias in all channels, and
    takes the channels of a Linear in rows for positions."""

    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory):
        torch.manual_seed(4)
        prepared = calibrated(Tokens(), "simqat")
        folder = tmp_path_factory.mktemp("tokens")
        return {name: written(prepared, folder / name, name) for name in ("cpu", "openvino")}

    @pytest.mark.parametrize("target", ["cpu", "openvino"])
    def test_openvino_computes_what_onnx_runtime_does(self, files, target):
        pytest.importorskip("openvino")
        run = runtime.load(files[target])[1]
        expected, (found,) = in_onnx_runtime(files[target]), run(IMAGES)
        assert_equal_but_for_ties(expected.reshape(len(found), -1), found.reshape(len(found), -1))
        assert np.allclose(run(IMAGES[:1])[0], found[:1], atol=1e-6), "one image alone"

    def test_for_onnx_runtime_nothing_changes(self, files):
        cpu, openvino = map(in_onnx_runtime, files.values())
        np.testing.assert_allclose(openvino, cpu, rtol=1e-6, atol=1e-6)

    def test_no_shape_tells_the_length_and_no_reshape_makes_rows(self, files):
        kinds = {
            name: {node.op_type for node in onnx.load(path).graph.node}
            for name, path in files.items()
        }
        assert "Shape" not in kinds["cpu"] | kinds["openvino"]
        assert "Gemm" in kinds["cpu"] - kinds["openvino"]


@pytest.mark.parametrize(
    "shapes",
    [
        "float[batch, 3, 8] x",
        "float[4] table, uint8[2, batch, 8] x",
        "float[batch, 3, rows] x",
        "float[batch, rows, columns] x",
    ],
)
def test_lengths_come_from_the_size_of_an_input_that_has_them(shapes):
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]> g ({shapes}) => (int64[N] y)
        {{ z = Cast<to = 1>(x)  y = Shape<end = 2>(z) }}"""
    )
    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))
    count_by_size(graph)
    changed = onnx_ir.to_proto(graph)
    assert "Shape" not in {node.op_type for node in changed.graph.node}
    for one in (model, changed):
        session = onnxruntime.InferenceSession(one.SerializeToString())
        feeds = {}
        for value in session.get_inputs():
            dtype = np.uint8 if value.type == "tensor(uint8)" else np.float32
            feeds[value.name] = np.ones(
                [n if isinstance(n, int) else 5 for n in value.shape], dtype
            )
        assert session.run(None, feeds)[0].tolist() == list(feeds["x"].shape[:2])


def test_a_length_that_no_input_has_stays_a_shape():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[batch, 3] x) => (int64[N] y)
        { z = Concat<axis = 0>(x, x)  y = Shape<end = 1>(z) }"""
    )
    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))
    count_by_size(graph)
    assert [node.op_type for node in graph.graph] == ["Concat", "Shape"]


def test_without_gates_and_adds_the_target_needs_no_other_file(tmp_path):
    prepared = calibrated(networks.build("plain"), "slb", 1, 8)
    files = [
        written(prepared, tmp_path / "m.onnx", name).read_bytes() for name in ("cpu", "openvino")
    ]
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
    path = written(gated, tmp_path / "m.onnx", "openvino")
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
    path = written(prepared, tmp_path / "m.onnx", "openvino")
    with torch.no_grad():
        wanted = prepared.eval()(torch.from_numpy(IMAGES))[0].numpy()
    np.testing.assert_allclose(in_onnx_runtime(path), wanted, atol=0.02 * np.abs(wanted).max())


def test_float_gates_are_at_least_as_near_to_the_unrounded_network(gated, tmp_path):
    """Against the same network whose sigmoids were never quantized, in ONNX Runtime."""
    files = [written(gated, tmp_path / name, name) for name in ("cpu", "openvino")]
    cpu, openvino = map(in_onnx_runtime, files)
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


def test_without_it_the_error_says_what_to_install(gated, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(QdeployError, match=r'pip install "qdeploy\[openvino\]"'):
        qdeploy.export(gated, tmp_path / "m.onnx", networks.images(2), target="openvino")
    assert not list(tmp_path.iterdir())


def test_the_library_checks_the_file_in_openvino(gated, tmp_path):
    pytest.importorskip("openvino")
    path = qdeploy.export(gated, tmp_path / "m.onnx", networks.images(2), target="openvino")
    assert_equal_but_for_ties(in_onnx_runtime(path), *runtime.load(path)[1](IMAGES))
