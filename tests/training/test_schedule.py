"""The learning rate against its closed forms."""

import numpy as np
import pytest
import torch

from qdeploy.recipe import TrainPhase, TrainSection
from qdeploy.training.schedule import lr_factor, set_lr


def factors(progress: np.ndarray, **settings: object) -> list[float]:
    section = TrainSection(epochs=20, **settings)
    return [lr_factor(section, float(p)) for p in progress]


def test_cosine_after_warm_up_is_half_a_cosine_over_the_rest() -> None:
    progress = np.linspace(4, 20, 33)
    expected = np.cos(np.pi * (progress - 4) / 16 / 2) ** 2
    np.testing.assert_allclose(
        factors(progress, schedule="cosine", warmup_epochs=4), expected, atol=1e-15
    )


def test_cosine_is_the_one_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(factors(np.arange(20), schedule="cosine"), expected, rtol=1e-12)


def test_step_multiplies_by_gamma_at_each_milestone() -> None:
    progress = np.array([0, 4.99, 5, 11.99, 12, 19.5])
    got = factors(progress, schedule="step", milestones=(5, 12), gamma=0.2)
    np.testing.assert_allclose(got, [1, 1, 0.2, 0.2, 0.04, 0.04])


def test_without_a_schedule_it_is_cosine_unless_a_regime_gives_learning_rates() -> None:
    progress = np.linspace(0, 20, 9)
    decay = (TrainPhase(epoch=3, weight_decay=0.1),)
    rates = (*decay, TrainPhase(epoch=5, lr=0.3))
    cosine = factors(progress, schedule="cosine")
    assert factors(progress) == factors(progress, regime=decay) == cosine
    assert factors(progress, regime=rates) == [1.0] * 9
    assert factors(progress, regime=rates, schedule="cosine") == cosine


def test_constant_is_one() -> None:
    assert factors(np.linspace(0, 20, 9), schedule="constant") == [1.0] * 9


@pytest.mark.parametrize(
    "schedule", [{"schedule": "cosine"}, {"schedule": "constant"}], ids=lambda s: s["schedule"]
)
def test_warm_up_is_linear_and_meets_the_schedule(schedule: dict[str, str]) -> None:
    progress = np.array([0, 0.5, 1.5, 3])
    got = factors(progress, warmup_epochs=3, **schedule)
    np.testing.assert_allclose(got, progress / 3)


def test_set_lr_reaches_every_group() -> None:
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    settings = TrainSection(epochs=10, lr=0.4, schedule="cosine")
    assert set_lr(optimizer, settings, 5.0) == pytest.approx(0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2])
