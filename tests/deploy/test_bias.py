"""The int32 bias: how fine its step is, and that its rounding changes no decision it need not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import DEAD_SHIFT

from qdeploy.deploy.bias import deciding, nearest, spread_factor, with_room_for_bias
from qdeploy.grid import Grid, QTensor


@pytest.mark.parametrize(
    ("grid", "codes", "dead"),
    [
        (Grid.signed(8), [-128, -3, 0, 90], [0, 0, 0, 0]),
        (Grid((-62, -31, 0, 31)), [-62, 31, 0, -31], [0, 0, 0, 0]),
        (Grid.odd(2).spread(21), [-63, 63, -21, 21], [-21, 21, -21, 21]),
    ],
)
def test_room_for_the_bias_is_made_in_dead_channels_alone(grid, codes, dead):
    weight = QTensor(
        np.array([codes, codes], np.int8),
        np.array([0, 0.5], np.float32),
        np.zeros(2, np.int8),
        grid,
    )
    found = with_room_for_bias(weight, torch.tensor([DEAD_SHIFT, DEAD_SHIFT]), 0.01)
    assert found.codes.tolist() == [dead, codes]
    assert found.scale[1] == 0.5
    assert DEAD_SHIFT / (found.scale[0] * 0.01) == pytest.approx(2**30, rel=1e-6)


@pytest.mark.parametrize(
    ("grid", "values", "codes"),
    [
        (Grid((-1, 1)), [-5, -0.001, 0.001, 7], [-1, -1, 1, 1]),
        (Grid((-62, -31, 0, 31)), [-50, -40, -0.2, 16, 99], [-62, -31, 0, 31, 31]),
        (Grid.signed(8), [-128.4, -0.6, 0.4, 126.7], [-128, -1, 0, 127]),
    ],
)
def test_nearest_codes(grid, values, codes):
    assert nearest(np.array(values, float), grid).tolist() == codes


@pytest.mark.parametrize(
    ("grid", "input_highest", "factor"),
    [
        (Grid.odd(1), 255, 64), (Grid.odd(2), 255, 21), (Grid.odd(4), 255, 4), (Grid((-1, 0, 1)), 255, 64),
        (Grid.signed(2), 255, 32), (Grid.signed(4), 255, 8), (Grid.signed(8), 255, 1),
        (Grid.signed(7), 255, 1),
        (Grid.odd(1), 129, 127), (Grid.odd(2), 3, 42), (Grid.odd(4), 15, 8), (Grid.signed(8), 3, 1),
    ],
)  # fmt: skip
def test_few_levels_are_spread_as_far_as_two_products_fit_16_bits(grid, input_highest, factor):
    assert spread_factor(weight_of(grid, zero=0), input_highest) == factor
    if factor > 1:
        largest = max(map(abs, grid.spread(factor).codes))
        assert largest <= 127
        assert 2 * input_highest * largest <= 32767


def test_the_distance_from_a_zero_point_counts_too():
    """-4 around a zero point of 3 is 7 steps away: 18 times as far is still within 127."""
    assert spread_factor(weight_of(Grid.signed(3), zero=0), 3) == 31
    assert spread_factor(weight_of(Grid.signed(3), zero=3), 3) == 18


def weight_of(grid, zero):
    """One channel that holds every code of the grid."""
    codes = np.array([grid.codes], grid.storage)
    return QTensor(codes, np.ones(1, np.float32), np.array([zero], grid.storage), grid)


def codes(sums, bias, thresholds):
    """The code of each sum plus bias: how many thresholds it has reached, [sums]."""
    return (sums[:, None] + bias >= thresholds).sum(1)


@given(
    bias=st.floats(-1e4, 1e4),
    thresholds=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=15),
    spread=st.integers(2, 127),
)
def test_no_integer_wrongs_fewer_thresholds(bias, thresholds, spread):
    """Against all integers within a step of the sums, by counting; one threshold is never wronged."""
    thresholds = np.sort(thresholds)
    sums = spread * np.arange(-22000 // spread, 22000 // spread + 1)
    (chosen,) = deciding(np.array([bias]), thresholds[None], spread)
    assert chosen == round(chosen)
    assert abs(chosen - bias) <= spread + 1
    wanted = codes(sums, bias, thresholds)

    def wronged(integer):
        return int(np.abs(codes(sums, integer, thresholds) - wanted).sum())

    integers = np.round(bias) + np.arange(-spread, spread + 1)
    fewest = min(map(wronged, integers))
    assert wronged(chosen) == fewest
    if len(thresholds) == 1:
        assert fewest == 0


def test_the_nearest_of_the_integers_that_decide_alike_is_taken():
    # Multiples of 10 and a threshold at 7: with biases from -3 to 6.99 the first to reach it is 10.
    biases = np.array([-3.0, 2.4, 2.6, 6.9])
    assert deciding(biases, np.full((4, 1), 7.0), 10).tolist() == [-3, 2, 3, 6]
