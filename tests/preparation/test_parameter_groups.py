"""Which parameters decay, and by how much."""

import pytest
import torch
from networks import build, images
from torch import nn

import qdeploy


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
        self.decays = {"scale": 7.0}  # the user's own word


def decays_of(network: nn.Module, weight_decay: float) -> dict[str, float]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = qdeploy.parameter_groups(network, weight_decay=weight_decay)
    pairs = [(names[p], group["weight_decay"]) for group in groups for p in group["params"]]
    assert len(pairs) == len(names)
    return dict(pairs)


def test_only_weights_outside_norms_decay() -> None:
    decays = decays_of(Mixed(), 0.3)
    weights = {"conv.weight", "linear.weight", "logits", "frozen"}
    assert decays == {name: 0.3 if name in weights else 0.0 for name in decays}


def test_frozen_parameters_stay_and_the_state_of_the_optimizer_fits() -> None:
    free, frozen = Mixed(), Mixed()
    frozen.conv.requires_grad_(False)
    optimizers = [torch.optim.Adam(qdeploy.parameter_groups(n, 0.0)) for n in (free, frozen)]
    free.linear(torch.ones(2, 4)).sum().backward()
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    state = optimizers[1].state[frozen.linear.weight]
    torch.testing.assert_close(state["exp_avg"], torch.full((3, 4), 0.2))


@pytest.mark.parametrize("inside", [False, True], ids=["prepared", "a module that holds it"])
def test_alpha_has_its_own_decay_and_what_is_learned_beside_weights_none(inside: bool) -> None:
    prepared = qdeploy.prepare(build("plain"), images(2), "pact", 4, 4, alpha_decay=0.02)
    lsq = qdeploy.prepare(build("plain"), images(2), "lsq", 4, 4)
    network = nn.ModuleList([nn.Sequential(prepared, nn.Linear(5, 2)), lsq]) if inside else prepared
    decays = decays_of(network, 0.3)
    alphas = {name for name in decays if name.endswith("alpha")}
    weights = {n for n, p in network.named_parameters() if p.ndim > 1}
    assert alphas
    assert weights
    for name, decay in decays.items():
        assert decay == (0.02 if name in alphas else 0.3 if name in weights else 0.0), name


def test_a_step_of_sgd_is_that_of_the_penalty_in_the_loss() -> None:
    """alpha_decay times alpha^2 / 2, however the gradient is scaled, in one batch or in two halves."""
    prepared = qdeploy.prepare(
        build("plain"), images(2), "pact", 4, 4, alpha=1.5, alpha_decay=0.1
    ).train()
    alphas = {n: p for n, p in prepared.named_parameters() if n.endswith("alpha")}
    start = {name: alpha.item() for name, alpha in alphas.items()}
    optimizer = torch.optim.SGD(qdeploy.parameter_groups(prepared, weight_decay=0.0), lr=0.5)
    scale = 1024.0
    for _ in range(2):
        (prepared(images(4)).square().mean() / 2 * scale).backward()
    for parameter in prepared.parameters():
        parameter.grad /= scale
    gradients = {name: alpha.grad.item() for name, alpha in alphas.items()}
    optimizer.step()
    for name, alpha in alphas.items():
        wanted = start[name] - 0.5 * (gradients[name] + 0.1 * start[name])
        assert alpha.item() == pytest.approx(wanted, abs=1e-6)


def test_what_does_not_decay_has_the_gradient_of_the_loss_alone() -> None:
    network = qdeploy.prepare(build("plain"), images(2), "pact", 4, 4, alpha=1e3).train()
    network(images(4)).square().mean().backward()
    alphas = [p for n, p in network.named_parameters() if n.endswith("alpha")]
    assert [alpha.grad.item() for alpha in alphas] == [0.0] * len(alphas)  # nothing is clipped
