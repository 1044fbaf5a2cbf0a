"""Codes of the file against those of the integers in PyTorch: none differs, and planted errors show alone."""

import copy

import numpy as np
import pytest
import torch
from exported_networks import calibrated
from networks import Network, build, conv, images
from torch import nn

import qdeploy
from qdeploy.deploy.export import finished_with_tensors, to_onnx
from qdeploy.proof.tensors import ComparedNetwork


@pytest.fixture(scope="module")
def residual():
    return qdeploy.convert(calibrated(build("residual")))


def compared(integers, exported=None):
    """The integers beside the file of another network, or of their own."""
    graph = to_onnx(integers if exported is None else exported, images(2))
    proto, tensors = finished_with_tensors(graph, True, {})
    return ComparedNetwork(copy.deepcopy(integers), proto, tensors, "cpu")


def exactness(integers, exported=None, count=8):
    network = compared(integers, exported)
    network([images(count)])
    return network.result()


def test_tensors_come_in_the_order_of_the_network_in_the_users_words(residual):
    found = exactness(residual)
    assert [d.name for d in found.tensors] == [
        "x", "stem.0, stem_2", "conv1, relu", "conv2", "projection", "add, relu_1", "same.0",
        "add_1, relu_2", "pool",
    ]  # fmt: skip
    assert [d.elements for d in found.tensors] == [
        8 * n for n in (192, 448, 224, 144, 144, 144, 144, 144, 9)
    ]
    assert found.compared == sum(d.elements for d in found.tensors)
    assert found.differing == 0


def test_batches_add_up(residual):
    network = compared(residual)
    outputs = [network([images(count, seed=count)]) for count in (3, 5)]
    assert network.result().samples == 8
    assert network.result().compared == exactness(residual).compared
    for count, (result, in_file) in zip((3, 5), outputs, strict=True):
        assert torch.equal(result, residual(images(count, seed=count)))
        assert torch.equal(result, torch.from_numpy(in_file[0]))


def test_steps_and_shares_by_hand(residual, monkeypatch):
    network = compared(residual)
    honest = network.run_file

    def altered(fed):
        outputs, codes = honest(fed)
        name = list(codes)[3]
        changed = codes[name].astype(np.int16).ravel()
        changed[[0, 5]] += np.where(changed[[0, 5]] < 128, 3, -3)
        changed[7] += 1 if changed[7] < 128 else -1
        return outputs, codes | {name: changed.reshape(codes[name].shape)}

    monkeypatch.setattr(network, "run_file", altered)
    network([images(4)])
    network([images(6)])
    found = network.result().tensors[3]
    assert (found.name, found.elements) == ("conv2", 10 * 144)
    assert (found.differing, found.max_steps) == (2 * 3, 3)
    assert found.share == 6 / 1440
    assert sum(d.differing for d in network.result().tensors) == 6


def scaled(layer):
    layer.scale *= 1.5


def shifted(layer):
    layer.bias += torch.round(0.3 / layer.bias_scale).int()


@pytest.mark.parametrize("change", [scaled, shifted])
@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_a_planted_error_shows_where_it_was_planted_and_nowhere_else(residual, name, change):
    broken = copy.deepcopy(residual)
    change(broken.get_submodule(name))
    found = exactness(residual, broken)
    (wrong,) = [d for d in found.tensors if d.differing]
    assert wrong.name.split(",")[0] == name
    assert wrong.share > 0.2
    assert wrong.max_steps > 1
    assert found.differing == wrong.differing == round(wrong.share * wrong.elements)


def test_after_a_difference_the_result_is_that_of_the_integers_alone(residual):
    broken = copy.deepcopy(residual)
    shifted(broken.get_submodule("conv1"))
    result, in_file = compared(residual, broken)([images(8)])
    assert torch.equal(result, residual(images(8)))
    assert not torch.equal(result, torch.from_numpy(in_file[0]))


def test_the_network_is_left_as_it_was(residual):
    before, code = copy.deepcopy(residual.state_dict()), residual.code
    exactness(residual, count=4)
    assert residual.code == code
    assert all(torch.equal(value, before[name]) for name, value in residual.state_dict().items())


@pytest.mark.parametrize(
    ("function", "compared_tensors"),
    [
        # The file pads codes: what is padded is compared where it has been.
        (lambda self, x: self.b(nn.functional.pad(self.a(x).relu(), (1, 1, 1, 1))), ["x", "pad"]),
        # Its rounding joins the factor's.
        (lambda self, x: self.b(self.a(x).relu() * 0.3), ["x", "mul"]),
        (lambda self, x: self.b(torch.clamp(self.a(x), -0.5, 0.7)), ["x", "a, clamp"]),
        (
            lambda self, x: self.b(
                self.a(x).permute(0, 2, 3, 1).clamp(-0.5, 1).permute(0, 3, 1, 2)
            ),
            None,
        ),
        (lambda self, x: self.b(torch.clamp(self.a(x), max=self.hi)), None),
        (lambda self, x: self.b(torch.add(self.a(x), self.a(x).relu(), alpha=-0.5)), None),
        (lambda self, x: self.b(nn.functional.hardswish(self.a(x))), ["x", "a", "mul"]),
        (lambda self, x: self.b(nn.functional.silu(self.a(x))), ["x", "a", "sigmoid", "mul"]),
        (lambda self, x: self.b(self.a(x).mean((2, 3), keepdim=True)), ["x", "a", "mean"]),
        (lambda self, x: self.b(self.a(x) + self.a(x).mean((2, 3), keepdim=True)), None),
    ],
)
def test_what_stands_between_a_layer_and_its_rounding(function, compared_tensors):
    network = Network(function, a=conv(3, 6), b=conv(6, 4))
    network.register_buffer("hi", torch.tensor(0.3))
    found = exactness(qdeploy.convert(calibrated(network)), count=32)
    names = [d.name for d in found.tensors]
    assert compared_tensors is None or names == [*compared_tensors, "b"]
    assert all(d.differing == 0 for d in found.tensors)


def test_a_bound_that_is_computed_leaves_a_layer_in_float():
    network = Network(
        lambda self, x: self.b(torch.minimum(self.a(x), x.mean()).clamp(max=x.mean())),
        a=conv(3, 6), b=conv(6, 4),
    )  # fmt: skip
    found = exactness(qdeploy.convert(calibrated(network)), count=32)
    assert found.differing == 0
    assert all(d.share < 1e-3 for d in found.behind_float)


SOFTMAXES = {
    "scores": lambda self, x: self.b(self.a(x).softmax(1)),
    "shared": lambda self, x: self.b(torch.add(y := self.a(x), y.softmax(1))),
    "moved": lambda self, x: self.b(self.a(x).permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)),
    "pooled": lambda self, x: self.b(nn.functional.max_pool2d(self.a(x), 2).softmax(1)),
    "a part": lambda self, x: self.b(torch.cat([self.a(x)[:, :2], self.a(x)[:, :4]], 1).softmax(1)),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_computes_in_float_whatever_stands_in_front(name):
    network = Network(SOFTMAXES[name], a=conv(3, 6), b=conv(6, 4))
    found = exactness(qdeploy.convert(calibrated(network)), count=32)
    assert found.differing == 0
    assert [d.name for d in found.behind_float] == ["softmax"]
    assert all(d.share < 1e-3 for d in found.behind_float)


def test_what_float_operators_made_is_told_apart():
    network = Network(
        lambda self, x: self.b(nn.functional.gelu(self.a(x))), a=conv(3, 6), b=conv(6, 4)
    )
    found = exactness(qdeploy.convert(calibrated(network)))
    assert [d.name for d in found.behind_float] == ["gelu"]
    assert all(d.max_steps <= 1 and d.share < 1e-3 for d in found.behind_float)
    assert found.differing == 0
    assert str(found).startswith("0 of 6,656 codes differ in 3 tensors; behind float operators ")
