"""Distillation against its formula, and against a loop written out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import (
    TinyBatches,
    assert_same_state,
    data_that_fails,
    seed_by_hand,
    tiny_fit,
    tiny_network,
)
from torch import nn
from torch.nn.functional import cross_entropy, softmax

from qdeploy.tasks.distillation import distillation_loss
from qdeploy.training.checkpoint import load_checkpoint

PLAIN = {"schedule": "constant", "warmup_epochs": 0, "clip_norm": None, "nesterov": False}


def teacher() -> nn.Module:
    """A network with dropout and statistics that move, which a teacher must do without."""
    network = tiny_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3).add_(0.1)
    return network


@given(seed=st.integers(0, 100), images=st.integers(1, 5), classes=st.integers(2, 9))
def test_it_is_the_divergence_of_the_softened_outputs(seed: int, images: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    student, taught = random.normal(0, 5, (2, images, classes))
    p, q = (np.exp(logits / 4) for logits in (taught, student))
    p, q = (soft / soft.sum(1, keepdims=True) for soft in (p, q))
    expected = 16 * (p * np.log(p / q)).sum(1).mean()
    found = distillation_loss(torch.from_numpy(student), torch.from_numpy(taught))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_its_gradient_is_as_large_at_any_temperature() -> None:
    """Hinton et al., equation 4: for logits that are small and centred, (z - v) / classes."""
    student = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = (1e-3 * (student - student.mean())).requires_grad_()
    distillation_loss(student, torch.zeros(1, 8, dtype=torch.float64)).backward()
    torch.testing.assert_close(student.grad, student.detach() / 8, rtol=1e-2, atol=1e-9)


def by_hand(share: float) -> nn.Module:
    network, taught = tiny_network(), teacher().eval()
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0},
        ],
        lr=0.05,
        momentum=0.9,
    )
    for epoch in range(4):
        seed_by_hand(epoch)
        for images, labels in TinyBatches(shuffle=True).epoch(epoch):
            logits = network(images)
            p = softmax(taught(images).detach() / 4, 1)
            divergence = (p * (p.log() - torch.log_softmax(logits / 4, 1))).sum(1).mean()
            loss = (1 - share) * cross_entropy(logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            (loss + share * 16 * divergence).backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_run_is_the_loop_by_hand(tmp_path: Path, share: float) -> None:
    network = tiny_network()
    tiny_fit(network, tmp_path, teacher=teacher(), distill=share, **PLAIN)
    torch.testing.assert_close(network.state_dict(), by_hand(share).state_dict())


def test_the_teacher_stays_as_it_is_and_is_not_kept(tmp_path: Path) -> None:
    taught, network = teacher(), tiny_network()
    tiny_fit(network, tmp_path, teacher=taught, distill=0.5)
    assert_same_state(taught, teacher())
    assert all(parameter.grad is None for parameter in taught.parameters())
    found = load_checkpoint(tmp_path / "last.pt")
    assert found.state.keys() == network.state_dict().keys()
    assert len(found.optimizer["state"]) == len(list(network.parameters()))


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, network = tiny_network(), tiny_network()
    tiny_fit(whole, tmp_path / "whole", teacher=teacher(), distill=0.5)
    data = data_that_fails(KeyboardInterrupt(), epoch=2, step=3)
    cut = {"teacher": teacher(), "distill": 0.5}
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(tiny_network(), tmp_path / "cut", data=data, **cut)
    tiny_fit(network, tmp_path / "cut", resume=True, **cut)
    assert_same_state(network, whole)
