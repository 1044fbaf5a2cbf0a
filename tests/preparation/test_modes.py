"""A network that does other things in training than in evaluation does both, and ships evaluation."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv, images
from torch import nn

import qdeploy
from qdeploy.layers.quantized import QuantizedLayer


def logits_or_probabilities(self, x):
    y = self.head(F.relu(self.bn(self.body(x))))
    return y if self.training else y.sigmoid_()


def auxiliary(self, x):
    x = F.relu(self.bn(self.body(x)))
    if self.training:
        return self.head(x), self.aux(x).mean((2, 3))
    return self.head(x)


def losses_by_name(self, x):
    x = self.body(x)
    boxes, scores = self.head(x), self.aux(x)
    if self.training:
        return {"boxes": boxes, "scores": scores}
    return [boxes.mul(2), scores.softmax(1)]


def scaled_on_the_way(self, x):
    """What comes behind reads something else in each mode."""
    x = self.body(x)
    if self.training:
        x = x * 2
    return self.head(self.bn(x))


def sized(self, x):
    """As a detector that looks at its image."""
    assert x.shape[2] % 2 == 0
    y = self.head(self.body(x))
    return y if self.training else F.interpolate(y, size=x.shape[2:])


FORWARDS = [logits_or_probabilities, auxiliary, losses_by_name, scaled_on_the_way, sized]
BY_NAME = pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)


def network_of(forward):
    torch.manual_seed(0)
    parts = {
        "body": conv(3, 6),
        "bn": nn.BatchNorm2d(6, momentum=0),
        "head": conv(6, 4),
        "aux": conv(6, 4),
    }
    return Network(forward, **parts)


@BY_NAME
@pytest.mark.parametrize("training", [True, False])
def test_each_mode_gives_what_it_gives_in_the_network(forward, training):
    network = network_of(forward).train(training)
    expected = copy.deepcopy(network)(images(4))
    # In float: what is left is what tracing and joining made of the network.
    prepared = qdeploy.prepare(
        network, images(4), "simqat", layers={"*": "float"}, act_bits="float"
    )
    for copied in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        torch.testing.assert_close(copied.train(training)(images(4)), expected)


def test_tracing_leaves_the_statistics_of_a_head_alone():
    def forward(self, x):
        assert x.shape[2] % 2 == 0
        y = self.body(x)
        return (self.head(y), self.aux(y)) if self.training else self.head(y)

    aux = nn.Sequential(conv(6, 4), nn.BatchNorm2d(4))
    network = Network(forward, body=conv(), head=conv(6, 4), aux=aux)
    prepared = qdeploy.prepare(network, images(4), "simqat")
    norm = prepared.get_submodule("aux.0").norm
    assert torch.equal(norm.running_mean, aux[1].running_mean)


@BY_NAME
def test_a_layer_of_both_modes_is_one(forward):
    prepared = qdeploy.prepare(network_of(forward), images(4), "simqat")
    names = [
        name for name, module in prepared.named_modules() if isinstance(module, QuantizedLayer)
    ]
    assert set(names) <= {"body", "head", "aux"}


@BY_NAME
def test_what_only_training_does_is_not_shipped(forward):
    network = network_of(forward).eval()
    prepared = qdeploy.prepare(network, images(4), "simqat")
    prepared.train()(images(4))  # training observes what only it computes
    qdeploy.calibrate(prepared, [images(4)])
    integers = qdeploy.convert(prepared)
    expected = network(images(4))
    for a, b in zip(
        torch.utils._pytree.tree_leaves(integers(images(4))),
        torch.utils._pytree.tree_leaves(expected),
        strict=True,
    ):
        assert (a - b).norm() < 0.05 * b.norm()
    assert forward is not auxiliary or not hasattr(integers, "aux")


def test_a_head_of_training_alone_trains_quantized():
    prepared = qdeploy.prepare(network_of(auxiliary), images(4), "simqat")
    _, aux = prepared.train()(images(4))
    aux.sum().backward()
    latent = prepared.aux.quantizer.latent
    assert latent.grad is not None
    assert latent.grad.norm() > 0


def test_training_that_cannot_be_traced_is_said():
    def branching(self, x):
        x = self.body(x)
        if self.training and x.sum() > 0:
            x = x + 1
        return self.head(x)

    network = network_of(branching)
    with pytest.warns(UserWarning, match="does in training what it does in evaluation"):
        prepared = qdeploy.prepare(
            network, images(2), "simqat", layers={"*": "float"}, act_bits="float"
        )
    torch.testing.assert_close(prepared.train()(images()), network.eval()(images()))
