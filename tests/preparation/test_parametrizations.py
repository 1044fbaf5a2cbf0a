"""weight_norm and spectral_norm, old and new, fold into the weight that they compute."""

import pytest
import torch
from networks import conv, images
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.quantized import QuantizedLayer


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    return parametrize.register_parametrization(layer, "weight", Doubled()) or layer


NORMALISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "a user's": doubled,
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "twice": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("normalised", NORMALISED.values(), ids=NORMALISED)
def test_a_normalised_layer_is_quantized_and_said(normalised):
    torch.manual_seed(0)
    network = nn.Sequential(normalised(conv(3, 6)), nn.ReLU(), conv(6, 4)).train()
    network(images(4))  # spectral_norm looks for its vectors while it trains
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network.eval()(images())
    network.train()
    with pytest.warns(UserWarning, match=r"0\.weight \(.*fold"):
        prepared = qdeploy.prepare(network, images(4), "simqat")
    assert isinstance(prepared.get_submodule("0"), QuantizedLayer)
    qdeploy.calibrate(prepared, [images()])
    found = qdeploy.convert(prepared)(images())
    assert (found - expected).norm() < 0.03 * expected.norm()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert torch.equal(network.eval()(images()), expected)


def test_other_hooks_are_refused():
    network = nn.Sequential(conv())
    network[0].register_forward_hook(lambda *_: None)
    with pytest.raises(QdeployError, match="0 has forward hooks"):
        qdeploy.prepare(network, images(2), "simqat")
