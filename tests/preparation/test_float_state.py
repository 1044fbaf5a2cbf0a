"""The float network's state loads into a prepared network."""

import copy
import warnings

import pytest
import torch
from backbone_networks import METHODS, net, prepared_of, train
from networks import images
from torch import nn

import qdeploy
from qdeploy.layers.transparent import transparent

SETTINGS = [*((*row, {}) for row in METHODS), ("int8_training", 8, 8, {"range_constant": "paper"})]
every_setting = pytest.mark.parametrize(("method", "bits", "acts", "options"), SETTINGS)


@every_setting
def test_it_becomes_what_prepare_makes_of_that_network(method, bits, acts, options):
    prepared = prepared_of(net(0), method, bits, acts, **options)
    missing, unexpected = prepared.load_state_dict(net(1).state_dict())
    assert not missing
    assert not unexpected
    wanted = prepared_of(net(1), method, bits, acts, **options).state_dict()
    for name, value in prepared.state_dict().items():
        torch.testing.assert_close(value, wanted[name], msg=name)


def test_it_computes_what_that_network_computes():
    prepared, network = prepared_of(net(0)), net(1).eval()
    prepared.load_state_dict(network.state_dict())
    with torch.no_grad(), transparent(prepared):
        torch.testing.assert_close(prepared.eval()(images()), network(images()))


def test_a_part_of_it_loads_without_strict():
    prepared = prepared_of(net(0), "slb", 2)
    head = copy.deepcopy(prepared.head.state_dict())
    part = {n: v for n, v in net(1).state_dict().items() if n.startswith("backbone.")}
    assert not prepared.load_state_dict(part, strict=False).unexpected_keys
    wanted = prepared_of(net(1), "slb", 2)
    assert torch.equal(prepared.backbone.stem.weight, wanted.backbone.stem.weight)
    assert all(torch.equal(value, head[name]) for name, value in prepared.head.state_dict().items())


@every_setting
@pytest.mark.parametrize("part", ["backbone", "backbone.layer1.0", "backbone.stem", "head"])
def test_a_part_loads_the_state_of_that_part(method, bits, acts, options, part):
    prepared = prepared_of(net(0), method, bits, acts, **options)
    for copied in (prepared, copy.deepcopy(prepared)):
        copied.get_submodule(part).load_state_dict(net(1).get_submodule(part).state_dict())
        wanted = prepared_of(net(1), method, bits, acts, **options).get_submodule(part).state_dict()
        for name, value in copied.get_submodule(part).state_dict().items():
            torch.testing.assert_close(value, wanted[name], msg=name)


def test_inside_of_another_module():
    outer = nn.Sequential(prepared_of(net(0)), nn.Softmax(1))
    outer.load_state_dict(nn.Sequential(net(1), nn.Softmax(1)).state_dict())
    assert torch.equal(outer[0].backbone.stem.weight, net(1).backbone.stem.weight)


def test_after_training_it_warns_that_the_search_starts_anew():
    prepared = prepared_of(net(0), "lsq", 4, 4).train()
    train(prepared)
    with pytest.warns(UserWarning, match="search for weights starts anew"):
        prepared.load_state_dict(net(1).state_dict())
    step = prepared_of(net(1), "lsq", 4, 4).backbone.stem.quantizer.step
    assert torch.equal(prepared.backbone.stem.quantizer.step, step)


@every_setting
def test_a_prepared_networks_own_state_is_not_taken_for_it(method, bits, acts, options):
    prepared = prepared_of(net(0), method, bits, acts, **options).train()
    train(prepared)
    other = prepared_of(net(1), method, bits, acts, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(prepared.state_dict())
    pairs = zip(other.state_dict().values(), prepared.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Attention(nn.Module):
    """Of one width, and of others for key and value; a transposed layer; a gain that folds."""

    def __init__(self):
        super().__init__()
        self.same = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.narrow, self.up = nn.Linear(8, 6), nn.ConvTranspose1d(5, 7, 2, 2)
        self.scale = nn.Parameter(torch.rand(7, 1))

    def forward(self, x):
        x = self.same(x, x, x)[0]
        y = self.narrow(x)
        x = self.other(x, y, y)[0]
        return self.up(x) * self.scale


def test_attention_transposed_layers_and_gains():
    torch.manual_seed(0)
    first, second = Attention().eval(), Attention().eval()
    x = torch.randn(2, 5, 8)
    prepared = qdeploy.prepare(first, x, "simqat")
    prepared.load_state_dict(second.state_dict())
    with torch.no_grad(), transparent(prepared):
        torch.testing.assert_close(prepared.eval()(x), second(x), rtol=1e-4, atol=1e-5)
