"""Layers between integer tensors: which run on codes, which in float, and what is said of them."""

import functools

import numpy as np
import onnx
import pytest
import torch
from exported_networks import run
from networks import conv, images
from torch import nn

import qdeploy
from qdeploy.benchmark import placement


@functools.cache
def exported(make, folder):
    """The network with `make()` between two convolutions: float, converted, its file."""
    torch.manual_seed(0)
    network = nn.Sequential(conv(3, 6), make(), conv(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images(16)])
    file = qdeploy.export(prepared.eval(), folder / f"{make.__name__}.onnx", images(2))
    return network.eval(), qdeploy.convert(prepared), file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("between")


def one_slope():
    return nn.PReLU(init=0.3)


def a_rising_slope():
    return nn.PReLU(init=-0.4)


def random_slopes():
    return nn.RReLU(0.1, 0.5)


def slopes():
    return nn.PReLU(6, init=0.3)


def overlapping():
    return nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1)


@pytest.mark.parametrize("make", [one_slope, a_rising_slope, random_slopes])
def test_one_slope_runs_on_codes(make, folder):
    network, converted, file = exported(make, folder)
    assert placement(file, "cpu").integer_kernels["QLinearLeakyRelu"] == 1
    (node,) = (n for n in onnx.load(file).graph.node if n.op_type == "LeakyRelu")
    slope = {"one_slope": 0.3, "a_rising_slope": -0.4, "random_slopes": 0.3}[make.__name__]
    assert [a.f for a in node.attribute] == [np.float32(slope)]
    found = run(onnx.load(file), images(9))
    with torch.no_grad():
        np.testing.assert_allclose(found, converted(images(9)).numpy(), atol=1e-6)
        wanted = network(images(9)).numpy()
    assert np.abs(found - wanted).max() < 0.04 * np.abs(wanted).max()


def test_a_slope_for_each_channel_is_computed_in_float(folder):
    _, converted, file = exported(slopes, folder)
    assert placement(file, "cpu").operators["PRelu"] == 1
    with torch.no_grad():
        wanted = converted(images(9)).numpy()
    assert np.abs(run(onnx.load(file), images(9)) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_weights_of_integers_that_are_multiplied_in_float_are_said(folder):
    _, _, file = exported(overlapping, folder)
    found = placement(file, "cpu")
    reasons = {product.layer: product.reason for product in found.products}
    assert found.float_kernels == {"ConvTranspose": 1}
    assert reasons == {
        "0": None,
        "1": "its weights are integers in the file; ONNX Runtime computes with them in float",
        "2": None,
    }


def test_nodes_that_unpack_weights_have_no_names(folder):
    _, _, file = exported(overlapping, folder)
    named = [node.name for node in onnx.load(file).graph.node if node.name]
    assert named == ["0", "1", "2"]
