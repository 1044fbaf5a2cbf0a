"""What an exported network is said to consist of, against numbers worked out by hand."""

import numpy as np
import onnx
import pytest
import torch
from exported_networks import calibrated, skip_without_runtime
from networks import Network, build, conv, conv_norm_relu, images
from onnx import numpy_helper
from torch import nn

import qdeploy
from qdeploy import onnx_file
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.targets import available
from qdeploy.proof.description import describe, information_bound


@pytest.fixture
def described(tmp_path):
    def described(network, settings="simqat w8a8", **options):
        converted = qdeploy.convert(calibrated(network, settings, **options))
        return converted, layers_of(converted, tmp_path / "m.onnx")

    return described


def layers_of(converted, path, **options):
    qdeploy.export(converted, path, images(2), **options)
    return {layer.name: layer for layer in describe(converted, inspect(path).layers)}


def test_layers_in_the_order_of_the_network_with_their_bits(described):
    _, layers = described(build("residual"), "slb w1a8", layers={"conv2": "float"})
    assert list(layers) == ["stem.0", "conv1", "conv2", "bn2", "projection", "same.0", "fc"]
    assert {name: (layer.weight_bits, layer.act_bits) for name, layer in layers.items()} == {
        "stem.0": (1, 8), "conv1": (1, 8), "projection": (1, 8), "conv2": (None, None),
        "bn2": (None, None), "same.0": (1, 8), "fc": (7, 8),
    }  # fmt: skip
    assert layers["fc"].kind == "Linear"
    assert layers["conv1"].kind == "Conv2d"


def test_weights_levels_and_bound_by_hand(described):
    network = nn.Sequential(*conv_norm_relu(3, 7, bias=False), nn.Flatten(), nn.Linear(448, 5))
    converted, layers = described(network, "slb w1a8")
    stem, fc = layers["0"], layers["4"]
    signs = np.where(network[0].weight.detach().numpy() >= 0, 1, -1)  # logits keep the signs
    assert stem.weights == 7 * 3 * 9 == 189
    assert stem.levels == {-1: int((signs == -1).sum()), 1: int((signs == 1).sum())}
    assert stem.bound_bytes == 24 + 8 * 7
    assert fc.bound_bytes == 448 * 5 * 7 // 8 + 8 * 5
    assert sum(fc.levels.values()) == 2240
    assert information_bound(converted, tuple(layers.values())) == 80 + 2000


def test_levels_are_those_of_the_grid_not_the_spread_ones(described):
    _, layers = described(build("residual"), "simqat w3a4")
    for layer in layers.values():
        assert set(layer.levels) <= set(range(-4, 4))
        assert layer.weight_bits == 3


def test_float_layers_count_four_bytes_a_value(described):
    network = nn.Sequential(conv(), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.BatchNorm2d(4))
    converted, layers = described(network, layers={"2": "float"})
    assert layers["2"].weight_bits is None
    assert layers["2"].weights == 6 * 4 * 4 + 4
    assert layers["2"].weight_bytes == layers["2"].bound_bytes == 4 * 100
    levels = len(layers["0"].levels)
    integer = int(np.ceil(3 * 6 * 9 * np.log2(levels) / 8)) + 8 * 6
    assert (
        information_bound(converted, tuple(layers.values())) == integer + 4 * 100
    )  # the norm folds


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.chunk(2, 1)[1],
        lambda x: x[:, 3:],
        lambda x: x.flatten(2).unflatten(2, (8, 8))[:, :3],
        lambda x: torch.cat([x[:, :1], x[:, 4:]], 1),
    ],
    ids=["chunk", "slice", "reshape", "concat"],
)
def test_moved_tensors_have_the_bits_of_where_they_were_made(move, described):
    network = Network(
        lambda self, x: self.fc(self.b(move(self.a(x).relu())).relu().flatten(1)),
        a=conv(), b=conv(3, 4), fc=nn.Linear(256, 5),
    )  # fmt: skip
    _, layers = described(network, "simqat w3a4")
    assert {name: layer.act_bits for name, layer in layers.items()} == {"a": 8, "b": 4, "fc": 4}


def test_weights_for_float_activations_have_no_activation_bits():
    prepared = qdeploy.prepare(build("vector"), images(2), "slb", 1, "float", linear=True)
    layers = describe(qdeploy.convert(prepared), ())
    assert [(layer.weight_bits, layer.act_bits) for layer in layers] == [(1, None), (1, None)]


def sizes_in(path):
    """{layer: bytes of the constants behind it}, by walking the graph of the file."""
    model = onnx.load(path)
    tensors = {t.name: numpy_helper.to_array(t).nbytes for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    added = {
        node.input[i]: node for node in model.graph.node for i in (0, 1) if node.op_type == "Add"
    }

    def constants(name):
        if name in tensors:
            return {name}
        parts = [constants(part) for part in makers[name].input if part] if name in makers else []
        return set().union(*parts) if parts and all(parts) else set()

    def read(node):
        names = {name for value in node.input for name in constants(value)}
        return names | (read(added[node.output[0]]) if node.op_type == "MatMul" else set())

    products = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    nodes = [node for node in model.graph.node if node.op_type in products and node.name]
    return {node.name: sum(tensors[name] for name in read(node)) for node in nodes}


class TestBytes:
    """Of the file that was written, not of one that might have been."""

    @pytest.mark.parametrize("target", available())
    @pytest.mark.parametrize("settings", ["simqat w8a8", "slb w2a8"])
    def test_no_layer_is_below_its_bound(self, target, settings, tmp_path):
        skip_without_runtime(target)
        prepared = calibrated(build("residual"), settings, layers={"conv2": "float"})
        converted = qdeploy.convert(prepared)
        path = tmp_path / "m.onnx"
        layers = layers_of(converted, path, target=target)
        found = {name: layer.weight_bytes for name, layer in layers.items()}
        assert all(found[name] >= layer.bound_bytes for name, layer in layers.items())
        del found["bn2"]  # folded into conv2, which counts its own bytes
        assert found == sizes_in(path)

    def test_a_layer_that_uses_three_levels_of_eight(self, tmp_path):
        network = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 4))
        with torch.no_grad():
            network[2].weight.copy_(torch.randint(-1, 2, network[2].weight.shape))
        converted = qdeploy.convert(calibrated(network, "simqat w3a4"))
        layer = layers_of(converted, tmp_path / "m.onnx")["2"]
        assert len(layer.levels) == 3
        assert layer.bound_bytes <= layer.weight_bytes < 64 * 64 * 9 / 4

    @pytest.mark.parametrize("size", [4, 32])  # torch.onnx merges equal weights that are small
    def test_layers_of_equal_weights_keep_their_names(self, size, tmp_path):
        network = nn.Sequential(
            conv(3, size), nn.ReLU(), conv(size, size), nn.ReLU(), conv(size, size)
        )
        network[4].load_state_dict(network[2].state_dict())
        converted = qdeploy.convert(calibrated(network, "simqat w8a8"))
        path = qdeploy.export(converted, tmp_path / "m.onnx", images(2))
        assert [layer.name for layer in inspect(path).layers] == ["0", "2", "4"]

    def test_what_is_not_packed_is_not_said_to_be(self, tmp_path):
        network = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 32))
        converted = qdeploy.convert(calibrated(network, "slb w2a8"))
        cpu, tensorrt = (
            layers_of(converted, tmp_path / "m.onnx", target=target)["2"].weight_bytes
            for target in ("cpu", "tensorrt")
        )
        weights = 32 * 64 * 9
        assert weights / 4 < cpu < weights / 2
        assert tensorrt > weights

    @pytest.mark.parametrize("inputs", [3, 64])  # torch.onnx merges equal weights that are small
    def test_a_layer_that_is_called_twice(self, inputs, tmp_path):
        network = Network(
            lambda self, x: self.out(self.a(self.a(self.stem(x)).relu()).relu()),
            stem=conv(3, inputs), a=conv(inputs, inputs), out=conv(inputs, 4),
        )  # fmt: skip
        converted = qdeploy.convert(calibrated(network, "simqat w3a4"))
        layers = layers_of(converted, tmp_path / "m.onnx")
        assert list(layers) == ["stem", "a", "a_2", "out"]
        assert layers["a"].weight_bytes == layers["a_2"].weight_bytes >= layers["a"].bound_bytes
        assert layers["a"].weight_bytes == sizes_in(tmp_path / "m.onnx")["a"]

    @pytest.mark.parametrize("target", available())
    def test_a_linear_over_sequences(self, target, tmp_path):
        """Its bias is added behind the product where it does not take rows."""
        skip_without_runtime(target)
        torch.manual_seed(0)
        x = torch.randn(4, 5, 8)
        network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
        prepared = qdeploy.prepare(network, x[:2], "simqat")
        qdeploy.calibrate(prepared, [x])
        converted = qdeploy.convert(prepared)
        path = tmp_path / "m.onnx"
        qdeploy.export(converted, path, x[:2], target=target)
        layers = describe(converted, inspect(path).layers)
        assert [layer.name for layer in layers] == ["0", "2"]
        assert all(layer.weight_bytes >= layer.bound_bytes for layer in layers)
        assert {layer.name: layer.weight_bytes for layer in layers} == sizes_in(path)

    def test_weights_beside_the_file(self, tmp_path, monkeypatch):
        converted = qdeploy.convert(calibrated(build("residual"), "slb w2a8"))
        inside = layers_of(converted, tmp_path / "m.onnx")
        monkeypatch.setattr(onnx_file, "FILE_LIMIT", 100)
        monkeypatch.setattr(onnx_file, "SMALLEST_OUTSIDE", 64)
        outside = layers_of(converted, tmp_path / "large.onnx")
        assert list(tmp_path.glob("large.onnx.*.data"))
        assert outside == inside
