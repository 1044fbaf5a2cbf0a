"""Transparent quantizers: a prepared network computes what the float network does, and leaves no trace."""

import copy

import pytest
import torch
from networks import awkward_norms, build, images
from torch import nn

import qdeploy
from qdeploy.layers.transparent import transparent

CASES = {
    "simqat": ("simqat", 4, 4, {}),
    "one-conv": ("simqat", 4, 4, {"fold": "one-conv", "freeze_bn": 0}),
    "two-conv": ("simqat", 4, 4, {"fold": "two-conv", "freeze_bn": 0}),
    "slb-1": ("slb", 1, 8, {"linear": True}),
    "slb-2": ("slb", 2, 8, {"linear": True}),
    "slb-random": ("slb", 4, 8, {"start": "random"}),
    "dorefa-1": ("dorefa", 1, 2, {}),
    "dorefa-2": ("dorefa", 2, 2, {"grad_bits": 4}),
    "pact": ("pact", 4, 4, {}),
    "lsq": ("lsq", 3, 3, {}),
    "xnor": ("xnor", 1, 8, {}),
    "ternary": ("ternary", 2, 8, {}),
    "range-bn": ("int8_training", 8, 8, {}),
    "range-bn-paper": ("int8_training", 8, 8, {"range_constant": "paper"}),
}
every_case = pytest.mark.parametrize(
    ("method", "bits", "acts", "options"), CASES.values(), ids=CASES
)


def pair(method, bits, acts, options, name="residual"):
    """A float network in training mode, and the same prepared."""
    network = awkward_norms(build(name)).train()
    return network, qdeploy.prepare(network, images(2), method, bits, acts, **options)


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_outputs_are_those_of_float(method, bits, acts, options, training):
    network, prepared = pair(method, bits, acts, options)
    with transparent(prepared), torch.no_grad():
        found = prepared.train(training)(images(5))
    wanted = network.train(training)(images(5))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@every_case
def test_nothing_is_observed_and_afterwards_everything_rounds_again(method, bits, acts, options):
    _, prepared = pair(method, bits, acts, options)
    before = copy.deepcopy(prepared.state_dict())
    with transparent(prepared), torch.no_grad():
        prepared(images(5))
    norms = {name for name, m in prepared.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for key, value in prepared.state_dict().items():
        if key.rpartition(".")[0] not in norms:
            assert torch.equal(value, before[key]), key
    layer = prepared.get_submodule("conv1").eval()
    assert torch.equal(
        layer.quantizer(), layer.quantizer.collapse(layer.quantizer.latent).dequantize()
    )
