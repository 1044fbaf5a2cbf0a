"""In training a quantizer does the work of the ReLU in front of it: the same values and gradients."""

import dataclasses

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv
from torch import nn

import qdeploy
from qdeploy import methods
from qdeploy.grid import Grid
from qdeploy.layers.activation import ActivationQuantizer, DeferredReLU

INTO_QUANTIZERS = "qdeploy.preparation.deferred_relus.defer_relus"
SETTINGS = [
    (name, max(methods.find(name).weight_bits), bits)
    for name in methods.available()
    for bits in {min(methods.find(name).act_bits), 8} & set(methods.find(name).act_bits)
    if (name, bits) != ("xnor", 1)  # refuses what a ReLU made
]


def prepared(monkeypatch, network, method, weight_bits, act_bits, *, fused, **options):
    torch.manual_seed(0)
    float_network = networks.build(network)
    with monkeypatch.context() as patch:
        if not fused:
            patch.setattr(INTO_QUANTIZERS, lambda network: None)
        return qdeploy.prepare(
            float_network, networks.images(2), method, weight_bits, act_bits, **options
        )


def deferred_relus(network):
    return [module for module in network.modules() if isinstance(module, DeferredReLU)]


def steps(network, count=3):
    """Logits and gradients of some steps of training, and the buffers behind them."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    found = []
    for seed in range(count):
        torch.manual_seed(seed)  # methods that round at random
        images = networks.images(16, seed=seed).requires_grad_()
        optimizer.zero_grad()
        logits = network(images)
        logits.square().mean().backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        found.append([logits.detach(), images.grad, *gradients])
        optimizer.step()
    return found, dict(network.named_buffers())


@pytest.mark.parametrize("network", ["residual", "plain"])
@pytest.mark.parametrize(("method", "weight_bits", "act_bits"), SETTINGS)
def test_training_is_the_same_with_and_without_the_relu(
    monkeypatch, network, method, weight_bits, act_bits
):
    settings = network, method, weight_bits, act_bits
    apart, together = (prepared(monkeypatch, *settings, fused=fused) for fused in (False, True))
    assert not deferred_relus(apart)
    wanted, wanted_buffers = steps(apart)
    found, buffers = steps(together)
    for some, others in zip(wanted, found, strict=True):
        for one, other in zip(some, others, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    assert buffers.keys() == wanted_buffers.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, wanted_buffers[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["simqat", "dorefa", "pact", "lsq", "int8_training", "slb"])
def test_a_relu_behind_a_norm_is_taken_over(monkeypatch, method):
    weight_bits = 8 if method != "slb" else 1
    network = prepared(monkeypatch, "residual", method, weight_bits, 8, fused=True)
    assert deferred_relus(network)


def test_during_the_delay_the_relu_is_there(monkeypatch):
    network = prepared(monkeypatch, "residual", "simqat", 8, 8, fused=True, quant_delay=2)
    plain = prepared(monkeypatch, "residual", "simqat", 8, 8, fused=False, quant_delay=2)
    for some, others in zip(steps(plain)[0], steps(network)[0], strict=True):
        torch.testing.assert_close(others[0], some[0])


@pytest.mark.parametrize("options", [{"act_symmetric": True}, {}])
def test_a_range_that_reaches_below_zero_leaves_the_relu(monkeypatch, options):
    network = prepared(monkeypatch, "residual", "simqat", 8, 8, fused=True, **options)
    assert bool(deferred_relus(network)) != bool(options)


READERS = {
    "two readers": lambda self, x: (y := F.relu(self.conv(x))) + self.same(y),
    "a clamp": lambda self, x: self.same(F.relu6(self.conv(x))),
    "shared with what no relu made": lambda self, x: self.wide(
        torch.cat([F.relu(self.conv(x)), self.other(x)], 1)
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_where_the_relu_is_needed_it_stays(name):
    parts = {"conv": conv(), "same": conv(6), "other": conv(), "wide": conv(12)}
    network = Network(lambda self, x: READERS[name](self, x).mean((2, 3)), **parts)
    prepared = qdeploy.prepare(network, networks.images(2), "simqat")
    expected = 1 if name == "two readers" else 0
    # Of two readers both read what one quantizer gives; the ReLU itself has that one reader.
    assert len(deferred_relus(prepared)) == expected
    quantizers = [m for m in prepared.modules() if isinstance(m, ActivationQuantizer)]
    assert sum(quantizer.does_relu for quantizer in quantizers) == expected


TENSOR_BOUNDS = {
    "a buffer": lambda self, x: torch.clamp(self.conv(x).permute(0, 2, 3, 1), max=self.high),
    "computed": lambda self, x: torch.clamp(self.conv(x).permute(0, 2, 3, 1), max=self.high.abs()),
    "two tensors": lambda self, x: (
        self.conv(x).permute(0, 2, 3, 1).clamp(-self.high.abs(), self.high)
    ),
}


@pytest.mark.parametrize("name", TENSOR_BOUNDS)
def test_a_clamp_to_a_tensor_stays_behind_what_moves_the_values(name):
    network = Network(
        lambda self, x: self.last(TENSOR_BOUNDS[name](self, x)),
        conv=conv(3, 8),
        last=nn.Linear(8, 4),
    )
    network.register_buffer("high", torch.linspace(-0.2, 0.5, 8))
    network.eval()
    prepared = qdeploy.prepare(network, networks.images(2), "simqat", 8, "float", {"*": "float"})
    torch.testing.assert_close(prepared(networks.images()), network(networks.images()))


def test_a_method_has_no_duty_when_its_quantizer_takes_over_a_relu(monkeypatch):
    class Largest(ActivationQuantizer):
        """Clips at 0, observes plainly, and knows nothing of a ReLU that is left to it."""

        can_take_over_relu = True

        def __init__(self, bits):
            super().__init__(Grid.unsigned(bits))
            self.seen, self.largest = [], torch.zeros(())

        def observe(self, x):
            self.seen.append(x.min().item())
            self.largest = torch.maximum(self.largest, x.mean() + 2 * x.std())

        def qparams(self):
            return self.largest / self.grid.highest, torch.zeros(())

    method = dataclasses.replace(
        methods.find("simqat"), activation=lambda site, bits, options: Largest(bits)
    )
    monkeypatch.setattr(methods, "find", lambda name: method)
    settings = "residual", "simqat", 8, 8
    apart, together = (prepared(monkeypatch, *settings, fused=fused) for fused in (False, True))
    for some, others in zip(steps(apart)[0], steps(together)[0], strict=True):
        torch.testing.assert_close(others, some, rtol=1e-5, atol=1e-7)
    quantizers = [m for m in together.modules() if isinstance(m, Largest) and m.does_relu]
    assert quantizers
    assert all(min(quantizer.seen) >= 0 for quantizer in quantizers)


def test_one_relu_module_called_at_several_places_is_taken_over_at_each():
    network = Network(
        lambda self, x: self.relu(self.same(self.relu(self.conv(x)))).mean((2, 3)),
        conv=conv(), same=conv(6), relu=nn.ReLU(inplace=True),
    )  # fmt: skip
    prepared = qdeploy.prepare(network, networks.images(2), "simqat")
    (relu,) = deferred_relus(prepared)
    assert [quantizer.does_relu for quantizer in relu.children()] == [True, True]


def test_evaluation_and_calibration_see_the_relu(monkeypatch):
    """So files, ranges and moments are those of the network as it was given."""
    one, other = (
        prepared(monkeypatch, "residual", "simqat", 8, 8, fused=fused) for fused in (False, True)
    )
    for network in (one, other):
        qdeploy.calibrate(network, [networks.images(16, seed=5)], "mse", batch_norm=True)
        network.eval()
    torch.testing.assert_close(other(networks.images()), one(networks.images()), rtol=0, atol=0)
