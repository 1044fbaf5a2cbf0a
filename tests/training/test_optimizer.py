"""Which parameters decay, which optimizer is made, and what leaves it when it is frozen."""

import pytest
import torch
from torch import nn

from qdeploy.recipe import TrainSection
from qdeploy.training.optimizer import drop_frozen, make_optimizer, parameter_groups


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.batch_norm = nn.BatchNorm2d(2)
        self.layer_norm = nn.LayerNorm((2, 4, 4))
        self.linear = nn.Linear(4, 3)
        self.logits = nn.Parameter(torch.ones(5, 3))
        self.scale = nn.Parameter(torch.ones(3))
        self.tied = self.linear
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_only_weights_outside_norms_decay() -> None:
    network = Mixed()
    names = {parameter: name for name, parameter in network.named_parameters()}
    weights, others = parameter_groups(network, 0.3)
    assert {names[p] for p in weights["params"]} == {"conv.weight", "linear.weight", "logits"}
    assert {names[p] for p in others["params"]} == {
        *("conv.bias", "linear.bias", "scale", "batch_norm.weight", "batch_norm.bias"),
        *("layer_norm.weight", "layer_norm.bias"),
    }
    assert (weights["weight_decay"], others["weight_decay"]) == (0.3, 0.0)


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


def test_a_frozen_parameter_leaves_with_its_momentum_and_gradient() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = make_optimizer(nn.Sequential(first, second), TrainSection(weight_decay=0.1))
    second(first(torch.ones(2, 3))).square().sum().backward()
    optimizer.step()
    first.weight.requires_grad_(False)
    committed, others = first.weight.clone(), [first.bias.clone(), second.weight.clone()]

    drop_frozen(optimizer)
    optimizer.step()

    assert torch.equal(first.weight, committed)
    assert first.weight.grad is None
    assert set(optimizer.state) == {first.bias, second.weight, second.bias}
    assert not torch.equal(first.bias, others[0])
    assert not torch.equal(second.weight, others[1])


def test_the_state_fits_a_new_optimizer_when_every_weight_is_frozen() -> None:
    def committed() -> nn.Linear:
        layer = nn.Linear(2, 2)
        layer.weight.requires_grad_(False)
        return layer

    layer = nn.Linear(2, 2)
    optimizer = make_optimizer(layer, TrainSection())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    layer.weight.requires_grad_(False)
    drop_frozen(optimizer)

    resumed = make_optimizer(committed(), TrainSection())
    resumed.load_state_dict(optimizer.state_dict())
    bias = resumed.param_groups[1]["params"][0]
    assert torch.equal(resumed.state[bias]["momentum_buffer"], torch.ones(2))
