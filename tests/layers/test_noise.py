"""Noise for stochastic rounding: each number uniform, any two independent."""

import numpy as np
import pytest
import torch
from scipy import stats

from qdeploy.layers.noise import pairwise_uniform

DRAWS = 20_000


@pytest.fixture(scope="module")
def draws():
    """[DRAWS, 6]: six numbers of a tensor [2, 3]."""
    torch.manual_seed(0)
    like = torch.empty(2, 3)
    return np.stack([pairwise_uniform(like).numpy().ravel() for _ in range(DRAWS)])


def test_each_number_is_uniform(draws):
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_any_two_numbers_are_independent(draws):
    for one in range(6):
        for other in range(one):
            counts, _, _ = np.histogram2d(
                draws[:, one], draws[:, other], bins=5, range=[[0, 1]] * 2
            )
            assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_sums_of_rounded_values_vary_as_with_independent_numbers():
    """Var(sum w round(v)) = sum w^2 f (1 - f), f the fraction of v: independence of pairs is enough."""
    torch.manual_seed(1)
    values, weights = torch.rand(4, 3, 2), torch.randn(4, 3, 2)
    sums = torch.stack(
        [((values + pairwise_uniform(values)).floor() * weights).sum() for _ in range(DRAWS)]
    )
    wanted = (weights.square() * values * (1 - values)).sum()
    assert sums.mean().item() == pytest.approx((weights * values).sum().item(), abs=0.05)
    assert sums.var().item() == pytest.approx(wanted.item(), rel=0.05)


def test_it_lies_in_memory_as_what_it_is_for():
    like = torch.empty(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert pairwise_uniform(like).is_contiguous(memory_format=torch.channels_last)
