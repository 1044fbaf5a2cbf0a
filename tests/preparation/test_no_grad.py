"""What forward computes under torch.no_grad gets no gradient in the prepared network either."""

import pytest
import torch
from networks import Network, conv, images
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import qdeploy
from qdeploy.layers.transparent import transparent


def frozen_stem(self, x):
    with torch.no_grad():
        y = F.relu(self.norm(self.stem(x)))
    return self.head(y)


@torch.no_grad()
def features(self, x):
    return self.stem(x).chunk(2, 1)


def frozen_parts(self, x):
    first, second = features(self, x)
    return self.head(torch.cat([first, self.norm(self.stem(x))[:, 3:] * second], 1))


def sized(self, x):
    with torch.set_grad_enabled(False):
        y, half = self.stem(x), x.shape[-1] // 2
        with torch.enable_grad():
            z = self.norm(y)
    return self.head(y[..., :half]) + self.head(z[..., half:])


def checkpointed(self, x):
    return self.head(checkpoint(lambda x: F.relu(self.norm(self.stem(x))), x, use_reentrant=True))


def reversed_twice(self, x):
    return self.head(Reversed.apply(self.norm(Reversed.apply(self.stem(x)))))


class Reversed(torch.autograd.Function):
    """PyTorch runs forward without gradients here too."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "forward", [frozen_stem, frozen_parts, sized, checkpointed, reversed_twice]
)
@pytest.mark.parametrize("prepared_under_no_grad", [False, True])
def test_gradients_are_those_of_the_float_network(forward, prepared_under_no_grad):
    torch.manual_seed(0)
    network = Network(forward, stem=conv(), norm=nn.BatchNorm2d(6), head=conv(6, 4)).train()
    with torch.set_grad_enabled(not prepared_under_no_grad):
        prepared = qdeploy.prepare(network, images(2), "simqat")
    with transparent(prepared):
        found = gradients_by_value(prepared)
    for value, wanted in gradients_by_value(network).items():
        assert (found[value] is None) == (wanted is None)
        assert wanted is None or found[value] == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def gradients_by_value(network):
    """The length of the gradient of each parameter, None without one; parameters by their sum."""
    network(images(4).requires_grad_()).square().sum().backward()
    return {
        (p.numel(), p.sum().item()): None if p.grad is None else p.grad.norm().item()
        for p in network.parameters()
    }
