"""A BatchNorm is one however it is written, and folds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import Network, awkward_norms, conv, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.quantized import QuantizedLayer


class NormAct(nn.BatchNorm2d):
    """timm's BatchNormAct2d: what nn.BatchNorm2d does, written out, and an activation."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        assert x.ndim == 4
        momentum = self.momentum or 0.0
        if self.training:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )  # fmt: skip
        return self.act(self.drop(x))


class Subclass(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Renamed(nn.BatchNorm2d):
    """With other defaults, as a code base has its own."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.03)


class ByHand(nn.Module):
    """A module that is no BatchNorm, with its statistics."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, channels))
        self.register_buffer("mean", torch.linspace(-0.2, 0.2, channels))
        self.register_buffer("var", torch.linspace(0.5, 1.5, channels))

    def forward(self, x):
        training = self.training
        return F.batch_norm(
            x, self.mean, self.var, weight=self.gain, training=training, momentum=0.3
        )


NORMS = {
    "timm": NormAct,
    "timm, plain mean": lambda channels: NormAct(channels, momentum=None),
    "timm, without gain": lambda channels: NormAct(channels, affine=False),
    "subclass": Subclass,
    "renamed": Renamed,
    "synchronised": nn.SyncBatchNorm,
    "by hand": ByHand,
}


def network_of(norm):
    torch.manual_seed(0)
    return awkward_norms(nn.Sequential(conv(3, 6), norm(6), conv(6, 4)))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_norm_folds_and_trains_as_in_the_network(norm):
    network = network_of(norm).train()
    float_layers = {"layers": {"*": "float"}, "act_bits": "float"}
    transparent = qdeploy.prepare(network, images(4), "simqat", **float_layers).train()
    for step in range(3):
        x = images(8, seed=step)
        torch.testing.assert_close(transparent(x), network(x))
    torch.testing.assert_close(transparent.eval()(images()), network.eval()(images()))

    prepared = qdeploy.prepare(network, images(4), "simqat")
    first = next(m for m in prepared.modules() if isinstance(m, QuantizedLayer))
    assert first.norm is not None
    qdeploy.calibrate(prepared, [images()])
    found, expected = qdeploy.convert(prepared)(images()), network.eval()(images())
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_one_functional_norm_for_two_layers_is_one_module():
    norm = ByHand(6)
    network = nn.Sequential(conv(3, 6), norm, conv(6, 6), norm).train()
    prepared = qdeploy.prepare(
        network, images(4), "simqat", layers={"*": "float"}, act_bits="float"
    )
    torch.testing.assert_close(prepared.train()(images(8)), network(images(8)))
    torch.testing.assert_close(prepared.eval()(images()), network.eval()(images()))


def test_a_frozen_functional_norm_stays_frozen():
    def frozen(self, x):
        return F.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var)

    network = Network(frozen, conv=conv(), norm=awkward_norms(nn.BatchNorm2d(6)))
    prepared = qdeploy.prepare(
        network, images(4), "simqat", layers={"*": "float"}, act_bits="float"
    )
    before = copy.deepcopy(prepared.state_dict())
    torch.testing.assert_close(prepared.train()(images()), network.train()(images()))
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_a_norm_whose_weight_is_computed_is_refused_by_name():
    def computed(self, x):
        norm = self.norm
        return F.batch_norm(
            self.conv(x),
            norm.running_mean,
            norm.running_var,
            norm.weight.exp(),
            None,
            self.training,
        )

    network = Network(computed, conv=conv(), norm=nn.BatchNorm2d(6))
    with pytest.raises(QdeployError, match=r"batch_norm \(F.batch_norm\) computes its weight"):
        qdeploy.prepare(network, images(2), "simqat")


def test_a_synchronised_norm_takes_ranges_in_8_bit_training():
    evaluated = []
    for norm in (nn.SyncBatchNorm, nn.BatchNorm2d):
        torch.manual_seed(0)
        network = nn.Sequential(conv(3, 6), norm(6), conv(6, 4))
        prepared = qdeploy.prepare(network, images(4), "int8_training")
        torch.manual_seed(1)  # gradients are rounded at random
        prepared.train()(images())
        evaluated.append(prepared.eval()(images()))
    torch.testing.assert_close(*evaluated)
