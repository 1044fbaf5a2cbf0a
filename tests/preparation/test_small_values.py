"""What stands under a division, a root or a logarithm is not rounded to 0."""

import copy

import onnx
import pytest
import torch
import torch.nn.functional as F
from exported_networks import session
from networks import Network, conv, images
from quantizers import activations
from torch import nn

import qdeploy

SMALL = {
    "a norm": lambda self, y: y / y.square().sum(1, keepdim=True).sqrt(),
    "a norm by name": lambda self, y: y / y.norm(dim=1, keepdim=True),
    "a deviation": lambda self, y: (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True),
    "normalised by hand": lambda self, y: (
        (d := y - y.mean(1, keepdim=True)) * ((d * d).mean(1, keepdim=True) + 1e-6).rsqrt()
    ),
    "an inverse": lambda self, y: y * (16 * y).square().sum(1, keepdim=True).add(0.1).rsqrt(),
    "a gate": lambda self, y: y / (torch.sigmoid(16 * self.other(y)) + 1e-4),
    "a root": lambda self, y: (self.other(y).abs() + 1e-6) ** 0.5,
    "a gradient's magnitude": lambda self, y: torch.sqrt(
        y[:, :3] ** 2 + y[:, 3:].pow(2) + 1e-8
    ).repeat(1, 2, 1, 1),
    "a logarithm": lambda self, y: torch.log(F.softmax(8 * y, 1)),
    "an entropy": lambda self, y: (p := F.softmax(8 * y, 1)) * p.log(),
    "a reciprocal": lambda self, y: F.softplus(8 * y).reciprocal(),
    "also read by a layer": lambda self, y: (p := F.softmax(8 * y, 1)).log() + self.other(p),
}


def network_of(name):
    torch.manual_seed(0)
    return nn.Sequential(
        conv(), Network(lambda self, y: SMALL[name](self, y), other=conv(6)), conv(6, 4)
    ).eval()


def in_training_and_converted(name):
    """Images, and what the converted and the float network make of them."""
    network = network_of(name)
    x = images(16) * torch.logspace(0, -2, 8)  # pixels of one image are a hundred times another's
    prepared = qdeploy.prepare(network, x[:2], "simqat").train()
    prepared(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in prepared.parameters() if p.grad is not None)
    qdeploy.calibrate(prepared, [x], ranges="minmax")
    with torch.no_grad():
        return x, prepared, qdeploy.convert(prepared)(x), network(x)


@pytest.mark.parametrize("name", SMALL)
def test_it_is_finite_in_training_and_near_float_converted(name):
    _, _, converted, expected = in_training_and_converted(name)
    assert noise(converted, expected) < 0.1


@pytest.mark.parametrize("name", ["a norm", "an entropy", "also read by a layer"])
def test_the_file_gives_it_too(name, tmp_path):
    x, prepared, converted, _ = in_training_and_converted(name)
    file = qdeploy.export(prepared, tmp_path / "model.onnx", x[:2])
    (found,) = session(onnx.load(file)).run(None, {"input": x.numpy()})
    assert noise(torch.tensor(found), converted) < 1e-2


def noise(found, expected):
    """Root mean square, relative to the signal's."""
    return ((found - expected).square().mean() / expected.square().mean()).sqrt().item()


def test_what_cannot_vanish_is_rounded_as_all_else():
    network = Network(
        lambda self, x: self.other((y := self.conv(x)) / (1 + y.abs())), conv=conv(), other=conv(6)
    )
    prepared = qdeploy.prepare(copy.deepcopy(network), images(2), "simqat")
    assert {"conv", "abs_1", "truediv"} <= {n for n, _ in activations(prepared).items()}
