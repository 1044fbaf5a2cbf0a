"""What must hold of every network that is prepared, calibrated and exported."""

import copy
import warnings

import numpy as np
import onnx
import torch
from exported_networks import session
from hypothesis import assume
from networks import images
from random_networks import built

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.product import product_of
from qdeploy.layers.transparent import transparent

NEAR_FLOAT = 12  # decibels of signal over noise, after some ten lines of 8 bits
NEAR_INTEGERS = 30


def check(source, folder=None):
    """Asserts all of it for the network of a text; of the file if there is a folder to write it to."""
    network = built(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepared_and_checked(network)
        gradients_are_those_of_float(network, prepared)
        converted = converted_near_float(network, prepared)
        if folder is not None:
            file_is_the_converted_network(prepared, converted, folder)


def prepared_and_checked(network):
    """Prepared; prepare itself asserts that it computes the same in both modes."""
    try:
        return qdeploy.prepare(network, images(2), "simqat")
    except QdeployError as error:
        assume("no layer to quantize" not in str(error))
        raise


def outputs(network, x):
    found = network(x.clone())
    return found if isinstance(found, tuple) else (found,)


def gradients_are_those_of_float(network, prepared):
    """They point where float's do, and nothing frozen gets one."""
    pair = copy.deepcopy(network), copy.deepcopy(prepared)
    try:
        wanted = gradients(pair[0])
    except RuntimeError:
        return  # float cannot train either: what it needs later was written over
    with transparent(pair[1]):
        found = gradients(pair[1])
    for name, gradient in wanted.items():
        ours = found[name]
        assert (ours is None) == (gradient is None), f"{name} has a gradient in one alone"
        if gradient is not None and gradient.norm() > 1e-6:
            if ours.shape != gradient.shape:
                gradient = with_output_channels_first(gradient, name, network)
            cosine = torch.cosine_similarity(ours.flatten(), gradient.flatten(), 0)
            assert cosine > 0.99, f"the gradient of {name} points elsewhere: {cosine:.2f}"


def with_output_channels_first(gradient, name, network):
    product = product_of(network.get_submodule(name.rpartition(".")[0]))
    return product.with_output_channels_first(gradient)


def gradients(network):
    sum((y * y.detach().sign()).mean() for y in outputs(network, images())).backward()
    parameters = network.named_parameters(remove_duplicate=False)
    return {name: p.grad if p.requires_grad else None for name, p in parameters}


def converted_near_float(network, prepared):
    qdeploy.calibrate(prepared, [images()], ranges="minmax")
    converted = qdeploy.convert(prepared)
    with torch.no_grad():
        for found, wanted in zip(
            outputs(converted, images()), outputs(network, images()), strict=True
        ):
            decibels = over_noise(found.numpy(), wanted.numpy())
            assert decibels > NEAR_FLOAT, f"converted is {decibels:.0f} dB from float"
    return converted


def file_is_the_converted_network(prepared, converted, folder):
    file = qdeploy.export(prepared, folder / "model.onnx", images(2))
    exactness = qdeploy.validate(prepared, file, [images()]).exactness
    assert exactness.differing == 0, str(exactness)
    given = session(onnx.load(file)).run(None, {"input": images().numpy()})
    with torch.no_grad():
        for found, wanted in zip(given, outputs(converted, images()), strict=True):
            decibels = over_noise(found, wanted.numpy())
            assert decibels > NEAR_INTEGERS, f"the file is {decibels:.0f} dB from converted"


def over_noise(found, wanted):
    """Signal to noise in decibels, without what is the same in all values."""
    assert found.shape == wanted.shape, f"shape {found.shape} in place of {wanted.shape}"
    noise = ((found - wanted) ** 2).mean()
    return np.inf if noise == 0 else 10 * np.log10(wanted.var() / noise)
