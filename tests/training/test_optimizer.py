"""Which optimizer is made, and what changes with its settings."""

import copy

import pytest
import torch
from networks import build, images
from torch import nn

import qdeploy
from qdeploy.recipe import TrainSection
from qdeploy.training.optimizer import adjust_optimizer, make_optimizer


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"optimizer": "sgd", "momentum": 0.7, "nesterov": True}, torch.optim.SGD),
        ({"optimizer": "adam", "betas": (0.5, 0.8)}, torch.optim.Adam),
        ({"optimizer": "adamw", "betas": (0.5, 0.8)}, torch.optim.AdamW),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_the_settings_arrive(settings: dict, kind: type) -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), TrainSection(lr=0.123, **settings))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == 0.123
        for name in settings.keys() - {"optimizer"}:
            assert group[name] == settings[name]


def test_one_step_of_sgd_is_the_formula() -> None:
    layer = nn.Linear(2, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = make_optimizer(layer, TrainSection(lr=0.5, momentum=0.0, weight_decay=0.1))
    (layer.weight.sum() * 2 + layer.bias.sum() * 3).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight - 0.5 * (2 + 0.1 * weight))
    torch.testing.assert_close(layer.bias.detach(), bias - 0.5 * 3)


def test_other_settings_of_its_kind_keep_momentum_and_what_has_a_decay_of_its_own() -> None:
    network = qdeploy.prepare(build("plain"), images(2), "pact", 4, 4, alpha_decay=0.02).train()
    optimizer = make_optimizer(network, TrainSection(lr=0.1, weight_decay=0.1))
    network(images(4)).square().mean().backward()
    optimizer.step()
    momentum = copy.deepcopy(optimizer.state_dict()["state"])
    adjust_optimizer(optimizer, TrainSection(lr=0.3, weight_decay=0.4))
    assert [group["lr"] for group in optimizer.param_groups] == [0.3] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.4, 0.0, 0.02]
    torch.testing.assert_close(optimizer.state_dict()["state"], momentum, rtol=0, atol=0)
