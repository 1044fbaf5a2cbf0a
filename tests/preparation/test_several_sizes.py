"""A network that was prepared at one size trains and evaluates at others as the float network does."""

import copy

import pytest
import torch
from networks import Network, conv
from sized_networks import FORWARDS, SIZES, images, network

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.transparent import transparent


@pytest.fixture(params=FORWARDS, ids=lambda f: f.__name__)
def pair(request):
    """The float network and the prepared one."""
    model = copy.deepcopy(network(request.param))
    prepared = qdeploy.prepare(model, images(), "simqat")
    qdeploy.calibrate(prepared, [images(*size) for size in SIZES])
    return model, prepared


def test_it_evaluates_at_three_sizes(pair):
    model, prepared = pair
    for size in SIZES:
        with torch.no_grad():
            found, expected = prepared.eval()(images(*size)), model.eval()(images(*size))
        assert (found - expected).norm() < 0.06 * expected.norm()


def test_its_gradients_are_those_of_the_float_network_at_three_sizes(pair):
    model, prepared = pair
    for size in SIZES:
        for one in pair:
            one.train().zero_grad()
        with transparent(prepared):
            prepared(images(*size)).square().mean().backward()
        model(images(*size)).square().mean().backward()
        found = dict(prepared.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_steps_at_several_sizes_train_it(pair):
    _, prepared = pair
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    losses = []
    for size in SIZES * 6:
        loss = prepared.train()(images(*size)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_decision_at_larger_sizes_leaves_the_smaller_ones_free():
    """Twice the size is decided otherwise, half of it is not."""

    def pooled_if_large(self, x):
        y = self.conv(x)
        return torch.max_pool2d(y, 2) if x.shape[2] > 24 else y

    model = Network(pooled_if_large, conv=conv()).eval()
    prepared = qdeploy.prepare(model, images(), "simqat").eval()
    qdeploy.calibrate(prepared, [images(), images(12, 20)])
    found, expected = prepared(images(12, 20)), model(images(12, 20))
    assert (found - expected).norm() < 0.06 * expected.norm()
    with pytest.raises(QdeployError, match=r"line \d+: return torch.max_pool2d.* if x.shape"):
        prepared(images(32, 32))
