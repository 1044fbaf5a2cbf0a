"""The check of prepare: it finds what differs, names it, and touches nothing."""

import copy
import operator
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Network, awkward_norms, build, conv, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.preparation.check import check_prepared
from qdeploy.preparation.forward import Forward


def unchecked(network, x=None, method="simqat", **options):
    return qdeploy.prepare(network, images(2) if x is None else x, method, check=False, **options)


def wrong_bias(prepared):
    prepared.get_submodule("conv2").norm.bias.data[3] += 0.1


def wrong_operator(prepared):
    graph = copy.deepcopy(prepared.plan.evaluation.graph)
    node = next(node for node in graph.nodes if node.target is operator.add)
    node.target = operator.sub
    prepared.plan.evaluation = prepared.plan.training = Forward(graph)


def other_dropout(prepared):
    for module in prepared.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9


def other_momentum_of_statistics(prepared):
    for module in prepared.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= 1.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 6, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.dropout(F.relu(self.bn1(self.conv1(x))), 0.2, self.training)
        y = self.bn2(self.conv2(x))
        return {"features": x + y, "rest": (y, x.mean((2, 3)))}


@pytest.mark.parametrize(
    ("spoil", "mode", "output", "place"),
    [
        (wrong_bias, "evaluation", r"\['features'\]", r"bn2 \(.*test_check.py, line \d+: y = self.bn2"),
        (wrong_operator, "evaluation", r"\['features'\]", r"forward \(.*, line \d+: return .*x \+ y"),
        (other_dropout, "training", r"\['features'\]", r"forward \(.*, line \d+: x = F.dropout"),
        (other_momentum_of_statistics, "evaluation", "", r"bn1 \(.*, line \d+: x = F.dropout"),
    ],
)  # fmt: skip
def test_the_first_tensor_that_departs_is_named(spoil, mode, output, place):
    network = awkward_norms(Net())
    prepared = unchecked(network)
    check_prepared(network, prepared, [images(2)])
    spoil(prepared)
    with pytest.raises(QdeployError, match=rf"in {mode} .* Net does: output{output}.*{place}"):
        check_prepared(network, prepared, [images(2)])


def test_prepare_ends_with_it(monkeypatch):
    """An error of prepare that names the ways out, and check=False is one of them."""
    monkeypatch.setattr("qdeploy.preparation.deferred_relus.defer_relus", shift_the_output)
    with pytest.raises(QdeployError, match=r"`leaves`.*report.*check=False"):
        qdeploy.prepare(Net(), images(2), "simqat")
    unchecked(Net())


def shift_the_output(network):
    output = next(node for node in network.graph.nodes if node.op == "output")
    source = output.all_input_nodes[0]
    with network.graph.inserting_before(output):
        output.replace_input_with(source, network.graph.call_function(operator.add, (source, 1e-3)))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda x: x * (1 + (x - 1).abs().amax() * 1e-3), "output differs"),  # 1 is the example
        (lambda x: x.reshape(2, 6, 64).reshape(2, 6, 8, 8), "it stops with RuntimeError"),
        (lambda x: x * (1 if len(x) == 2 else 1.01), "output differs"),
        (lambda x: x.double(), r"it gives output torch.float64 \[2, .* in place of output torch.float32"),
        (lambda x: x[:1], r"it gives output torch.float32 \[1, 6, 8, 8\]"),
        (lambda x: (x, x), r"it gives output\[0\] .*, output\[1\] .* in place of output torch"),
    ],
    ids=["other values", "a fixed batch", "another size", "type", "shape", "structure"],
)  # fmt: skip
def test_it_tries_other_values_and_sizes_and_compares_structure(wrong, problem):
    layer = nn.Conv2d(3, 6, 1)
    ones = torch.ones(2, 3, 8, 8)
    with torch.no_grad():
        layer.weight.zero_()[:, 0] = 1  # the example gives 1 everywhere
        layer.bias.zero_()
    with pytest.raises(QdeployError, match=problem):
        check_prepared(layer, Network(lambda self, x: wrong(self.layer(x)), layer=layer), [ones])


def test_both_networks_and_all_random_numbers_are_left_as_they_were():
    network = build("residual").train()
    network.bn1.eval()
    prepared = unchecked(network, method="lsq", weight_bits=4, act_bits=4)
    before = copy.deepcopy([network.state_dict(), prepared.state_dict()])
    modes = [m.training for m in (*network.modules(), *prepared.modules())]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_prepared(network, prepared, [images(2)])
    for states_before, net in zip(before, (network, prepared), strict=True):
        for key, value in net.state_dict().items():
            assert torch.equal(value, states_before[key]), key
    assert modes == [m.training for m in (*network.modules(), *prepared.modules())]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_what_only_rounds_otherwise_in_float32_is_no_fault():
    """A BatchNorm that divides by next to nothing shows the last bits of what it reads."""

    def normed(function):
        return Network(lambda self, x: self.norm(function(x)), norm=nn.BatchNorm1d(4, eps=1e-12))

    def network():
        return normed(lambda x: x / 3 + 1000)

    def rewritten():
        return normed(lambda x: (x + 3000) / 3)

    x = torch.randn(3, 4) * 0.01
    assert (network()(x) - rewritten()(x)).abs().max() > 1e-3  # float32 does disagree
    check_prepared(network(), rewritten(), [x])
    with pytest.raises(QdeployError, match="output differs by"):
        check_prepared(network(), normed(lambda x: (x * x + 3000) / 3), [x])


def test_numbers_that_are_drawn_in_another_order_are_the_same():
    """Two dropouts that a rewrite exchanged, one of them over a transposed tensor."""
    parts = {"fc": nn.Linear(5, 5)}

    def one(self, x):
        a, b = F.dropout(self.fc(x), 0.3, self.training), F.dropout(x, 0.5, self.training)
        return a + torch.rand(1) * 0 + b

    def other(self, x):
        b = F.dropout(x.T.contiguous().T, 0.5, self.training)
        return F.dropout(self.fc(x), 0.3, self.training) + b

    check_prepared(Network(one, **parts), Network(other, **parts), [torch.randn(2, 5)])


def test_a_network_that_gives_other_outputs_at_every_call_is_not_blamed():
    numbers = torch.Generator()

    def noisy(self, x):
        noise = torch.randn(x.shape, generator=numbers) if self.training else 0
        return self.layer(x + noise)

    network = Network(noisy, layer=nn.Linear(4, 3))
    check_prepared(
        network, Network(lambda self, x: self.layer(x), layer=network.layer), [torch.randn(2, 4)]
    )
