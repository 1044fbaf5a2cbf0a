"""Cross-layer equalization: the same function, channels of one size."""

import copy

import pytest
import torch
import torch.nn.functional as F
from families import FrozenBatchNorm2d
from networks import awkward_norms, build, images
from torch import nn

import qdeploy
from qdeploy.layers.norm import ChannelAffine
from qdeploy.preparation.equalize import LEAST, equalize, pairs
from qdeploy.preparation.prepare import rewritten
from qdeploy.preparation.trace import trace


def uneven(network, seed=0):
    """Gives the channels of every weight sizes that differ by up to a hundred times."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            sizes = 100 ** torch.rand(len(layer.weight), generator=generator)
            with torch.no_grad():
                layer.weight.mul_(sizes.reshape(-1, *[1] * (layer.weight.ndim - 1)) / 10)
    return network


def seeded(*modules):
    network = nn.Sequential(*modules)
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.eval()


def plain(relu=nn.ReLU):
    """Without BatchNorm: conv, depthwise, pooling, grouped conv, flatten, linear."""
    return seeded(
        *(nn.Conv2d(3, 8, 3), relu(), nn.Conv2d(8, 8, 3, groups=8, padding=1), relu()),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, groups=4, bias=False), relu()),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(12, 6), relu(), nn.Linear(6, 5)),
    )


def normed(relu=nn.ReLU, affine=True):
    return awkward_norms(
        seeded(
            *(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=affine), relu()),
            *(nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.BatchNorm2d(6, affine=affine), relu()),
            *(nn.AvgPool2d(2), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.BatchNorm1d(4)),
            *(relu(), nn.Linear(4, 5)),
        )
    ).eval()


def equalized(network):
    traced = trace(network, images(2))
    equalize(traced)
    return traced


def sizes(pair):
    """What the giver gives and what the reader multiplies it by, largest of each channel."""
    weight = pair.reader.weight.detach()
    if isinstance(pair.reader, nn.Linear):
        weight = weight.reshape(len(weight), -1, weight.shape[1] // len(pair.giver.weight))
    groups = getattr(pair.reader, "groups", 1)
    read = torch.cat([w.abs().transpose(0, 1).flatten(1).amax(1) for w in weight.chunk(groups)])
    if isinstance(pair.giver, nn.BatchNorm1d | nn.BatchNorm2d):
        return pair.giver.bias.detach().abs() + 3 * pair.giver.weight.detach().abs(), read
    given = pair.giver.weight.detach().abs().flatten(1).amax(1)
    if pair.giver.bias is not None:
        given = given.maximum(pair.giver.bias.detach().abs())
    return given, read


NETWORKS = {
    "plain": plain,
    "uneven": lambda: uneven(plain()),
    "leaky": lambda: plain(nn.LeakyReLU),
    "normed": normed,
    "without affine": lambda: normed(affine=False),
    "residual": lambda: build("residual").eval(),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_it_computed_to_the_last_bit(name, training):
    network = NETWORKS[name]()
    same = equalized(network)
    for module in (*network.modules(), *same.modules()):
        module.training = training and not isinstance(module, nn.Dropout)
    with torch.no_grad():
        assert torch.equal(same(images()), network(images()))


@pytest.mark.parametrize(("name", "count"), [("plain", 4), ("uneven", 4), ("normed", 3)])
def test_afterwards_a_channel_and_what_reads_it_are_of_one_size(name, count):
    found = list(pairs(equalized(NETWORKS[name]())))
    assert len(found) == count
    for pair in found:
        given, read = sizes(pair)
        assert ((given / read).log2().abs() <= 1.001).all()  # factors are powers of two


def test_what_was_uneven_is_even():
    def unevenness(network):
        given = [sizes(pair)[0] for pair in pairs(network)]
        return max((size.max() / size.min()).item() for size in given)

    network = uneven(plain())
    assert unevenness(equalized(network)) < unevenness(trace(network, images(2))) / 5


def test_the_users_network_is_left_untouched():
    network = normed()
    before = copy.deepcopy(network.state_dict())
    qdeploy.prepare(network, images(2), "simqat", equalize=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dead", ["gain and shift", "weights that read"])
def test_a_dead_channel_keeps_within_bounds(dead):
    network = normed()
    with torch.no_grad():
        if dead == "gain and shift":
            network[1].weight[2] = network[1].bias[2] = 0
        else:
            network[3].weight[2] = 0
    traced = equalized(network)
    torch.testing.assert_close(traced(images()), network(images()), rtol=1e-4, atol=1e-4)
    factors = traced.get_submodule("3").weight / network[3].weight
    alive = factors[torch.isfinite(factors) & (factors != 0)]
    assert alive.max() < 100 * alive.min() / LEAST


def test_a_layer_of_zeros_is_left_alone():
    network = plain()
    nn.init.zeros_(network[2].weight)
    assert equalized(network)(images()).isfinite().all()


@pytest.mark.parametrize("make", [plain, normed])
def test_a_relu6_clips_where_it_clipped(make):
    network, x = make(nn.ReLU6).eval(), 10 * images()
    with torch.no_grad():
        torch.testing.assert_close(equalized(network)(x), network(x), rtol=1e-4, atol=1e-5)
        assert (network(x) - make().eval()(x)).abs().max() > 0.1  # it does clip


def test_constants_for_each_channel_do_not_say_what_reaches_it():
    """They multiply values of any size; a BatchNorm, values that are normalised."""
    network = seeded(
        nn.Conv2d(3, 6, 3), FrozenBatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 5, 3), nn.Flatten()
    )
    with torch.no_grad():
        network[0].weight.mul_(20)
        network[1].weight.fill_(0.5)
    traced = rewritten(trace(network, images(2)), [images(2)])
    assert any(isinstance(module, ChannelAffine) for module in traced.modules())
    equalize(traced)
    with torch.no_grad():
        torch.testing.assert_close(traced(images()), network(images()), rtol=1e-4, atol=1e-4)


class Branches(nn.Module):
    """Where scaling a channel in one place would change another."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied.weight = self.twice.weight
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        x = self.twice(F.relu(self.twice(x)))
        return torch.tanh(self.last(F.relu(self.tied(x))))


def test_what_is_read_twice_called_twice_or_tied_is_no_pair():
    network = Branches().eval()
    assert not list(pairs(trace(network, images(2))))
    torch.testing.assert_close(equalized(network)(images()), network(images()), rtol=0, atol=0)


class Reading(nn.Module):
    """The weight of a layer multiplies something else as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(F.relu(self.first(x))) + x.mean() * self.second.weight.sum()


def test_a_weight_that_is_read_elsewhere_is_left_alone():
    network = Reading().eval()
    assert not list(pairs(trace(network, images(2))))


class Tokens(nn.Module):
    """Linear layers over the last axis of [N, 6, 6]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def test_channels_on_another_axis_are_left_alone():
    assert not list(pairs(trace(Tokens(), images(2))))


@pytest.mark.parametrize("per_channel", [True, False])
def test_it_rescues_a_network_whose_channels_differ(per_channel):
    """Scaled apart as in the paper's figure 2, it is quantized as well as it was."""
    network = normed()
    torch.manual_seed(0)
    apart = copy.deepcopy(network)
    with torch.no_grad():
        factors = 300 ** torch.linspace(-1, 1, 6)
        apart[1].weight.mul_(factors)
        apart[1].bias.mul_(factors)
        apart[3].weight.div_(factors.reshape(-1, 1, 1, 1))
        expected = network(images(64, 3))

    def error(**options):
        options |= {"weight_per_channel": per_channel}
        prepared = qdeploy.prepare(apart, images(2), "simqat", **options)
        qdeploy.calibrate(prepared, [images(64, 1)], "minmax")
        with torch.no_grad():
            return (prepared.eval()(images(64, 3)) - expected).square().mean().item()

    assert error(equalize=True) < error() / 20
