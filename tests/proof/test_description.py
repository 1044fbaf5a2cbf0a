"""What a converted network is said to consist of, against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from exported_networks import calibrated
from networks import Network, build, conv, conv_norm_relu, images
from torch import nn

import qdeploy
from qdeploy.proof.description import describe, information_bound


def described(network, settings="simqat w8a8", **options):
    converted = qdeploy.convert(calibrated(network, settings, **options))
    return converted, {layer.name: layer for layer in describe(converted)}


def test_layers_in_the_order_of_the_network_with_their_bits():
    _, layers = described(build("residual"), "slb w1a8", layers={"conv2": "float"})
    assert list(layers) == ["stem.0", "conv1", "conv2", "bn2", "projection", "same.0", "fc"]
    assert {name: (layer.weight_bits, layer.act_bits) for name, layer in layers.items()} == {
        "stem.0": (1, 8), "conv1": (1, 8), "projection": (1, 8), "conv2": (None, None),
        "bn2": (None, None), "same.0": (1, 8), "fc": (8, 8),
    }  # fmt: skip
    assert layers["fc"].kind == "Linear"
    assert layers["conv1"].kind == "Conv2d"


def test_weights_levels_and_bound_by_hand():
    network = nn.Sequential(*conv_norm_relu(3, 7, bias=False), nn.Flatten(), nn.Linear(448, 5))
    converted, layers = described(network, "slb w1a8")
    stem, fc = layers["0"], layers["4"]
    signs = np.where(network[0].weight.detach().numpy() >= 0, 1, -1)  # logits keep the signs
    assert stem.weights == 7 * 3 * 9 == 189
    assert stem.levels == {-1: int((signs == -1).sum()), 1: int((signs == 1).sum())}
    assert stem.bound_bytes == 24 + 8 * 7
    assert fc.bound_bytes == 448 * 5 + 8 * 5
    assert sum(fc.levels.values()) == 2240
    assert information_bound(converted, describe(converted)) == 80 + 2280


def test_levels_are_those_of_the_grid_not_the_spread_ones():
    _, layers = described(build("residual"), "simqat w3a4")
    for layer in layers.values():
        assert set(layer.levels) <= set(range(-4, 4))
        assert layer.weight_bits == 3


def test_float_layers_count_four_bytes_a_value():
    network = nn.Sequential(conv(), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.BatchNorm2d(4))
    converted, layers = described(network, layers={"2": "float"})
    assert layers["2"].weight_bits is None
    assert layers["2"].weights == 6 * 4 * 4 + 4
    assert layers["2"].weight_bytes == layers["2"].bound_bytes == 4 * 100
    integer = 3 * 6 * 9 + 8 * 6
    assert information_bound(converted, describe(converted)) == integer + 4 * 100 + 4 * 4 * 4


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
def test_moved_tensors_have_the_bits_of_where_they_were_made(move):
    network = Network(
        lambda self, x: self.fc(self.b(move(self.a(x).relu())).relu().flatten(1)),
        a=conv(), b=conv(3, 4), fc=nn.Linear(256, 5),
    )  # fmt: skip
    _, layers = described(network, "simqat w3a4")
    assert {name: layer.act_bits for name, layer in layers.items()} == {"a": 8, "b": 4, "fc": 4}


def test_weights_for_float_activations_have_no_activation_bits():
    prepared = qdeploy.prepare(build("vector"), images(2), "slb", 1, "float", linear=True)
    layers = describe(qdeploy.convert(prepared))
    assert [(layer.weight_bits, layer.act_bits) for layer in layers] == [(1, None), (1, None)]
