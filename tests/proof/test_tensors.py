"""The layer trace: nothing to find where files agree, and a planted error where it was planted."""

import copy

import numpy as np
import pytest
import torch
from exported_networks import calibrated
from networks import build, images
from torch import nn

from qdeploy.deploy.export import to_onnx
from qdeploy.preparation.convert import convert
from qdeploy.proof import tensors as layer_trace
from qdeploy.proof.tensors import compare, trace_layers


def test_steps_and_shares_by_hand():
    expected = np.array([0.0, 0.5, 1.0, 1.5, -0.5], np.float32)
    found = np.array([0.0, 0.5001, 1.5, 0.0, -0.5], np.float32)
    difference = compare("relu", expected, found, 0.5)
    assert difference.name == "relu"
    assert difference.elements == 5
    assert difference.share == 0.4
    assert difference.max_steps == 3
    assert compare("same", expected, expected, 0.5).share == 0
    assert compare("same", expected, expected, 0.5).max_steps == 0


@pytest.fixture(scope="module")
def residual():
    return convert(calibrated(build("residual")))


def test_tensors_come_in_the_order_of_the_network_in_the_users_words(residual):
    found = trace_layers(residual, images(8), "cpu")
    assert [d.name for d in found] == [
        "x", "stem.0, stem_2", "conv1, relu", "conv2", "projection", "add, relu_1", "same.0",
        "add_1, relu_2", "pool",
    ]  # fmt: skip
    assert [d.elements for d in found] == [
        8 * n for n in (192, 448, 224, 144, 144, 144, 144, 144, 9)
    ]
    assert all(d.max_steps <= 1 and d.share < 0.001 for d in found), "the integers are the file's"


def corrupted(name, change):
    def broken(network, *arguments):
        change(network.get_submodule(name))
        return to_onnx(network, *arguments)

    return broken


def scaled(layer):
    layer.scale *= 1.5


def shifted(layer):
    layer.bias += torch.round(0.3 / layer.bias_scale).int()


@pytest.mark.parametrize("change", [scaled, shifted])
@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_a_planted_error_shows_first_where_it_was_planted(residual, name, change, monkeypatch):
    monkeypatch.setattr(layer_trace, "to_onnx", corrupted(name, change))
    found = trace_layers(residual, images(8), "cpu")
    first = next(d for d in found if d.max_steps > 1)
    assert first.name.split(",")[0] == name
    assert first.share > 0.2


def test_identical_networks_differ_nowhere():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    with torch.no_grad():  # powers of two: no value stands near a rounding tie
        network[0].weight.copy_(torch.tensor([1.0, 2, 4, 1]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1))
        network[0].bias.zero_()
    prepared = calibrated(network)
    for quantizer in prepared.network.activations.children():
        quantizer.minimum.fill_(-1.0 if quantizer is prepared.network.activations.input_1 else 0.0)
        quantizer.maximum.fill_(
            254 - 127 * 2 + 255 / 256 - 1 if quantizer.minimum < 0 else 255 / 16
        )
    found = trace_layers(convert(prepared), images(4).clamp(-0.5, 0.5), "cpu")
    assert [(d.share, d.max_steps) for d in found] == [(0, 0), (0, 0)]


def test_the_network_is_left_as_it_was(residual):
    before, code = copy.deepcopy(residual.state_dict()), residual.code
    trace_layers(residual, images(4), "cpu")
    assert residual.code == code
    assert all(torch.equal(value, before[name]) for name, value in residual.state_dict().items())
