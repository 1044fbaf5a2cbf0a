"""Complexity, against products counted by hand and the layers of the converted network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from exported_networks import calibrated
from networks import NETWORKS, Network, build, conv, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.proof.description import describe
from qdeploy.record import BitsWork


def attention(self, x):
    x = x.flatten(1, 2)  # [N, 24, 8]
    return self.attention(x, x, x)[0]


def fused_attention(self, x):
    return F.scaled_dot_product_attention(x, x, x)  # 3 heads, 8 positions of 8 channels


def functional(self, x):
    return F.conv2d(x, self.weight, padding=1)


# On [N, 3, 8, 8]: products of one image, worked out by hand.
CLOSED_FORMS = {
    "conv": (nn.Conv2d(3, 7, 3, padding=1), 8 * 8 * 7 * 3 * 9),
    "no padding": (nn.Conv2d(3, 7, 3), 6 * 6 * 7 * 3 * 9),
    "rectangular": (nn.Conv2d(3, 7, (1, 5)), 8 * 4 * 7 * 3 * 5),
    "stride": (nn.Conv2d(3, 7, 3, stride=2, padding=1), 4 * 4 * 7 * 3 * 9),
    "dilation": (nn.Conv2d(3, 7, 3, dilation=3), 2 * 2 * 7 * 3 * 9),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3, padding=1), 8 * 8 * 6 * 9),
    "pointwise": (nn.Conv2d(3, 7, 1, bias=False), 64 * 7 * 3),
    "circular": (nn.Conv2d(3, 7, 3, padding=1, padding_mode="circular"), 8 * 8 * 7 * 3 * 9),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3)),
        64 * 3 * 2 * 9,
    ),
    "conv3d": (
        nn.Sequential(
            nn.Unflatten(1, (3, 1)),
            nn.Conv3d(3, 4, (1, 3, 5), stride=(1, 1, 3), dilation=(1, 2, 1)),
        ),
        4 * 2 * 4 * 3 * 15,
    ),
    "transposed 3d": (
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.ConvTranspose3d(1, 5, (2, 3, 3), stride=2)),
        3 * 64 * 5 * 18,
    ),
    "conv1d": (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 5)), 60 * 4 * 3 * 5),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 192 * 5),
    "linear on [N, L, in]": (nn.Sequential(nn.Flatten(2), nn.Linear(64, 5)), 3 * 64 * 5),
    "linear on [N, C, H, W]": (nn.Linear(8, 5, bias=False), 3 * 8 * 8 * 5),
    "functional": (Network(functional, weight=nn.Parameter(torch.randn(4, 3, 3, 3))), 64 * 4 * 27),
    "matmul": (Network(lambda self, x: x @ x.transpose(2, 3)), 3 * 8 * 8 * 8),
    "attention": (
        Network(attention, attention=nn.MultiheadAttention(8, 2, batch_first=True)),
        24 * 8 * 24 + 2 * 24 * 24 * 8 + 24 * 8 * 8,
    ),
    "fused attention": (Network(fused_attention), 2 * 3 * 8 * 8 * 8),
    "norm, ReLU and pooling": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), 0),
}


@pytest.mark.parametrize(("network", "products"), CLOSED_FORMS.values(), ids=CLOSED_FORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_products_are_those_of_one_input(network, products, batch):
    found = qdeploy.complexity(network, images(batch))
    assert found.macs == products
    assert found.bit_operations == 32 * 32 * products
    assert sum(layer.macs for layer in found.layers) == products
    assert found.parameters == sum(p.numel() for p in network.parameters())


def test_a_layer_called_twice_works_twice_and_is_held_once():
    network = Network(lambda self, x: self.conv(self.conv(x)), conv=nn.Conv2d(3, 3, 3, padding=1))
    (layer,) = qdeploy.complexity(network, images(1)).layers
    assert (layer.name, layer.kind) == ("conv", "Conv2d")
    assert (layer.macs, layer.parameters) == (2 * 64 * 81, 84)


def test_bit_operations_of_layers_of_different_bits():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5, bias=False), nn.Linear(5, 2),
    )  # fmt: skip
    bits = {"7": {"weight_bits": 3, "act_bits": 4}, "8": "float"}
    found = qdeploy.complexity(
        qdeploy.prepare(network, images(2), "simqat", layers=bits, reduce_range=False), images(2)
    )
    first, second, third, last = 36 * 4 * 27, 16 * 4 * 36, 16 * 5, 10
    assert {layer.name: (layer.weight_bits, layer.act_bits) for layer in found.layers} == {
        "0": (8, 8), "3": (8, 8), "7": (3, 4), "8": (None, None),
    }  # fmt: skip
    assert found.by_bits == (
        BitsWork(3, 4, 1, third, 12 * third),
        BitsWork(8, 8, 2, first + second, 64 * (first + second)),
        BitsWork(None, None, 1, last, 1024 * last),
    )
    assert found.bit_operations == 12 * third + 64 * (first + second) + 1024 * last
    assert [layer.parameters for layer in found.layers] == [108 + 8, 144 + 4, 80, 12]


def test_float_activations_count_32_bits():
    prepared = qdeploy.prepare(build("plain"), images(2), "slb", 1, "float", linear=True)
    found = qdeploy.complexity(prepared, images(2))
    assert found.bit_operations == 32 * found.macs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_prepared_network_has_the_work_and_parameters_of_the_float_one(name):
    network = build(name)
    plain = qdeploy.complexity(network, images(2))
    prepared = qdeploy.prepare(network, images(2), "slb", 2, 8)
    before = copy.deepcopy(prepared.state_dict())
    found = qdeploy.complexity(prepared, images(2))
    assert (found.macs, found.parameters) == (plain.macs, plain.parameters)
    assert prepared.training
    assert all(torch.equal(before[key], value) for key, value in prepared.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_bits_are_those_that_ship(name):
    prepared = calibrated(build(name), "simqat w3a4")
    shipped = {
        layer.name: (layer.weight_bits, layer.act_bits)
        for layer in describe(qdeploy.convert(prepared), ())
        if layer.weight_bits is not None
    }
    found = {
        layer.name: (layer.weight_bits, layer.act_bits)
        for layer in qdeploy.complexity(prepared, images(2)).layers
        if layer.weight_bits is not None
    }
    second_calls = {name for name in shipped if name.endswith("_2")}
    assert found == {name: bits for name, bits in shipped.items() if name not in second_calls}


def test_a_converted_network_is_refused():
    converted = qdeploy.convert(calibrated(nn.Sequential(conv())))
    with pytest.raises(QdeployError, match="before convert"):
        qdeploy.complexity(converted, images(2))
