"""reduce_range: every method keeps to 7 bits where a layer could saturate, and only there."""

import dataclasses

import networks
import pytest
import torch
from torch import nn

import qdeploy
from qdeploy import methods
from qdeploy.errors import QdeployError
from qdeploy.grid import Grid
from qdeploy.methods import simqat


def grids(network, *settings, x=None, **options):
    """The grid of each layer's weight."""
    x = networks.images(4) if x is None else x
    prepared = qdeploy.prepare(network, x, *settings, **options)
    return {name: layer.quantizer.grid for name, layer in prepared.quantized_layers()}


WIDE = [
    (name, bits)
    for name in methods.available()
    for bits in methods.find(name).weight_bits
    if 7 <= bits <= 8
]


@pytest.mark.parametrize(("name", "bits"), WIDE)
def test_every_method_obeys(name, bits):
    """With 8-bit activations, also after training moved latents and BatchNorm mirrored codes."""
    x = networks.images(8)
    prepared = qdeploy.prepare(networks.build("residual"), x[:2], name, bits, 8)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    prepared(x).square().mean().backward()
    optimizer.step()
    for _, layer in prepared.quantized_layers():
        weight, _ = layer.integers()
        assert weight.codes.abs().max() <= 64
        assert len(weight.grid.codes) >= 2 * 63 + 1


def test_what_cannot_saturate_keeps_its_bits():
    """7-bit inputs and low-bit weights have room; floats do not meet."""
    narrow = grids(networks.build("plain"), "simqat", 8, 7)
    assert list(narrow.values()) == [
        Grid.signed(7),
        Grid.signed(8),
        Grid.signed(8),
    ]  # first the image
    assert set(grids(networks.build("plain"), "simqat", 8, "float").values()) == {Grid.signed(8)}
    assert set(grids(networks.build("plain"), "dorefa", 16, 16).values()) == {Grid.signed(16, True)}
    assert set(grids(networks.build("plain"), "simqat", 5, 8).values()) == {Grid.signed(5)}


@pytest.mark.parametrize("method", ["simqat", "lsq", "int8_training", "dorefa"])
def test_depthwise_layers_keep_their_bits_on_a_symmetric_grid(method):
    """Their kernels add in int32 if all zero points are 0, which negative gains leave as they are."""
    found = grids(networks.build("inverted_residual"), method, 8, 8)
    depthwise = {name for name, grid in found.items() if grid == Grid.signed(8, narrow=True)}
    assert depthwise == {name for name in found if "depthwise" in name}


def test_depthwise_weights_that_are_not_symmetric_become_7_bits_as_others():
    found = grids(networks.build("inverted_residual"), "simqat", weight_symmetric=False)
    assert set(found.values()) == {Grid.signed(7)}


def test_a_transposed_convolution_is_reduced_where_it_becomes_an_integer_kernel():
    for size, grid in ((2, Grid.signed(7)), (3, Grid.signed(8))):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 4, size, 2), nn.ReLU(),
            nn.Conv2d(4, 2, 1),
        )  # fmt: skip
        assert grids(network, "simqat")["2"] == grid


def test_settings_say_what_ships():
    x = networks.images(2)
    reduced = qdeploy.prepare(networks.build("plain"), x, "simqat")
    assert "simqat w7a8" in str(reduced)
    assert "simqat w8a8" in str(
        qdeploy.prepare(networks.build("plain"), x, "simqat", reduce_range=False)
    )


def test_dorefas_odd_levels_of_7_bits_become_those_of_64():
    """c / 127 of odd c would reach 127; c / 63 of all c does not, and has as many levels but one."""
    assert grids(networks.build("plain"), "dorefa", 7)["0"] == Grid.signed(7, narrow=True)
    assert grids(networks.build("plain"), "dorefa", 6)["0"] == Grid.odd(6)
    assert grids(networks.build("plain"), "dorefa", 7, reduce_range=False)["0"] == Grid.odd(7)


def test_a_method_whose_codes_stay_large_is_an_error_that_names_the_layer(monkeypatch):
    def stubborn(site, bits, options):
        return simqat.weight(site, 8, options)

    method = dataclasses.replace(simqat.METHOD, weight=stubborn)
    monkeypatch.setattr(methods, "find", lambda name: method)
    with pytest.raises(
        QdeployError, match=r"^0: method 'simqat' has codes beyond -64..64.* reduce_range = false"
    ):
        grids(networks.build("plain"), "simqat")
    assert grids(networks.build("plain"), "simqat", reduce_range=False)["0"] == Grid.signed(8)
