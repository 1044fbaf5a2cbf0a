"""A network that computes with sizes follows them, or says which it takes."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.preparation.trace import trace


def images(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def averaged(self, x):
    _, _, h, w = x.shape
    assert h % 4 == 0
    return self.conv(x).sum((2, 3)) / (h * w)


def resized(self, x):
    assert x.size(-1) % 4 == 0
    return F.interpolate(F.avg_pool2d(self.conv(x), 2), size=x.shape[-2:])


def pooled(self, x):
    y = self.conv(x)
    assert y.dim() == 4
    assert y.size(2) == y.size(3)
    return F.avg_pool2d(y, y.size(2))


def padded(self, x):
    """As timm's "same" padding and a U-Net's skip connection."""
    y = F.max_pool2d(self.conv(x), 2)
    y = F.interpolate(y, scale_factor=2)
    missing = x.size(3) - y.size(3)
    if missing > 0:
        y = F.pad(y, (0, missing, 0, missing))
    return y


def reshaped(self, x):
    b, _, h, w = x.shape
    if h < 2:
        raise ValueError("too small")
    return self.conv(x).view(b, 6, h * w).transpose(1, 2)


FOLLOW = [averaged, resized, pooled, reshaped]


@pytest.mark.parametrize("forward", FOLLOW, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("size", "batch"), [(8, 2), (20, 3), (32, 1)])
def test_another_image_size_gives_what_the_network_gives(forward, size, batch):
    network = Network(forward, conv=conv()).eval()
    traced = trace(network, images(16))
    torch.testing.assert_close(traced(images(size, batch)), network(images(size, batch)))


@pytest.mark.parametrize("forward", FOLLOW, ids=lambda f: f.__name__)
def test_integers_follow_the_size_too(forward):
    network = Network(forward, conv=conv()).eval()
    prepared = qdeploy.prepare(network, images(16), "simqat")
    qdeploy.calibrate(prepared, [images(32)])
    found, expected = qdeploy.convert(prepared)(images(32)), network(images(32))
    assert found.shape == expected.shape
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_a_decision_on_the_size_is_not_carried_over_to_another_one():
    network = Network(padded, conv=conv()).eval()
    traced = trace(network, images(16))
    torch.testing.assert_close(traced(images(24)), network(images(24)))
    with pytest.raises(QdeployError, match=r"test_sizes.py, line \d+: if missing > 0:"):
        traced(images(17))


def flattened(self, x):
    assert x.size(2) % 4 == 0
    return self.fc(self.conv(x).flatten(1)) + x.size(2)


@pytest.mark.parametrize("network", ["traced", "prepared", "converted"])
def test_a_network_for_one_size_refuses_the_others(network):
    layers = {"conv": conv(), "fc": nn.Linear(6 * 64, 5)}
    prepared = qdeploy.prepare(Network(flattened, **layers), images(8), "simqat").eval()
    qdeploy.calibrate(prepared, [images(8)])
    given = {
        "traced": trace(Network(flattened, **layers), images(8)),
        "prepared": prepared,
        "converted": qdeploy.convert(prepared),
    }[network]
    assert given(images(8, 3)).shape == (3, 5)
    with pytest.raises(
        QdeployError, match=r"prepared for inputs of \[N, 3, 8, 8\] alone; .*\[2, 3, 16, 16\]"
    ):
        given(images(16))


def test_a_sequence_may_be_longer():
    def mean(self, x):
        assert x.shape[1] > 1
        return self.fc(x).sum(1) / x.shape[1]

    network = Network(mean, fc=nn.Linear(4, 5)).eval()
    traced = trace(network, torch.randn(2, 6, 4))
    x = torch.randn(3, 9, 4)
    torch.testing.assert_close(traced(x), network(x))


def placed(self, x):
    """As DETR, YOLO and ConViT make tables of positions."""
    y = self.conv(x)
    n, _, h, w = y.shape
    rows = torch.arange(h, device=x.device, dtype=x.dtype) + 0.5
    grid = torch.stack(torch.meshgrid(rows, torch.arange(w).to(x), indexing="ij"))
    table = self.table.expand(n, -1, -1, -1)
    return torch.cat([y, grid.expand(n, -1, -1, -1), table + torch.zeros(n, 1, h, w)], 1)


def shifted(self, x):
    """As temporal shift modules write into parts of a tensor."""
    y = self.conv(x)
    out = torch.zeros_like(y)
    out[:, :2, 1:] = y[:, :2, :-1]
    out[:, 2:] = y[:, 2:]
    out[:, 0] += y.shape[2]
    return out


@pytest.mark.parametrize("forward", [placed, shifted], ids=lambda f: f.__name__)
@pytest.mark.parametrize("sized", [False, True])
def test_what_is_made_of_sizes_follows_them(forward, sized):
    def sizing(self, x):
        assert not sized or x.shape[2] > 1
        return forward(self, x)

    network = Network(sizing, conv=conv(), table=nn.Parameter(torch.randn(1, 2, 1, 1)))
    traced = pickle.loads(pickle.dumps(trace(network, images(16))))
    torch.testing.assert_close(traced(images(20, 3)), network(images(20, 3)))


def noisy(self, x):
    return self.conv(x) + (torch.randn(6, 1, 1) if self.training else 0)


def test_noise_is_drawn_anew():
    network = Network(noisy, conv=conv())
    prepared = qdeploy.prepare(
        network, images(8), "simqat", layers={"*": "float"}, act_bits="float"
    )
    for trained in (prepared, pickle.loads(pickle.dumps(prepared))):
        assert not torch.equal(trained.train()(images(8)), trained(images(8)))
        torch.manual_seed(3)
        found = trained(images(8))
        torch.manual_seed(3)
        torch.testing.assert_close(found, network.train()(images(8)))


def test_a_sequence_may_be_shorter_than_the_longest():
    def positioned(self, x):
        n = x.shape[1]
        assert n <= 6
        return self.fc(x + self.positions[:, :n])

    network = Network(positioned, fc=nn.Linear(4, 5), positions=nn.Parameter(torch.randn(1, 6, 4)))
    traced = trace(network, torch.randn(2, 6, 4))
    x = torch.randn(3, 3, 4)
    torch.testing.assert_close(traced(x), network(x))


def test_a_size_that_is_counted_up_is_a_number():
    def windowed(self, x):
        n, h = x.shape[0], x.shape[2]
        before = n
        n *= 2
        n *= h
        return self.conv(x).transpose(1, 2).reshape(n, 3, -1), before + n

    network = Network(windowed, conv=conv())
    traced = trace(network, images(16))
    found, expected = traced(images(16, 3)), network(images(16, 3))
    torch.testing.assert_close(found[0], expected[0])
    assert found[1] == expected[1]
