"""The int32 bias: how fine its step is, and that its rounding changes no decision it need not."""

import itertools

import numpy as np
import pytest
import torch
from exported_networks import calibrated_by
from hypothesis import given
from hypothesis import strategies as st
from networks import DEAD_SHIFT, Network, conv

import qdeploy
from qdeploy.grid import Grid, QTensor
from qdeploy.layers import integer
from qdeploy.layers.bias import nearest, rounded_to_keep_codes, spread_factor, with_room_for_bias
from qdeploy.layers.integer import IntegerLayer
from qdeploy.layers.product import MatrixProduct
from qdeploy.preparation import convert
from qdeploy.preparation.graph import called_module


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
        torch.tensor([codes, codes], dtype=torch.int8),
        torch.tensor([0, 0.5]),
        torch.zeros(2, dtype=torch.int8),
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
    assert nearest(torch.tensor(values, dtype=torch.float64), grid).tolist() == codes


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
    codes, zeros = (torch.tensor([part], dtype=grid.storage) for part in (grid.codes, zero))
    return QTensor(codes, torch.ones(1), zeros, grid)


def codes(sums, bias, thresholds):
    """The code of each sum plus bias: how many thresholds it has reached, [sums]."""
    return (sums[:, None] + bias >= thresholds).sum(1)


def rounded(bias, thresholds, spread):
    return rounded_to_keep_codes(
        torch.from_numpy(bias), torch.from_numpy(thresholds), spread
    ).numpy()


EXACT = st.integers(-(2**22), 2**22).map(lambda number: number / 1024)  # no float is rounded below


@given(bias=EXACT, thresholds=st.lists(EXACT, min_size=1, max_size=15), spread=st.integers(2, 127))
def test_no_integer_changes_fewer_codes(bias, thresholds, spread):
    """Against all integers within a step of the sums, by counting; one threshold keeps them all."""
    thresholds = np.sort(thresholds)
    sums = spread * np.arange(-9000 // spread, 9000 // spread + 1)
    (chosen,) = rounded(np.array([bias]), thresholds[None], spread)
    assert chosen == round(chosen)
    assert abs(chosen - bias) < 1
    wanted = codes(sums, bias, thresholds)

    def changed(integer):
        return int(np.abs(codes(sums, integer, thresholds) - wanted).sum())

    integers = np.round(bias) + np.arange(-spread, spread + 1)
    fewest = min(map(changed, integers))
    assert changed(chosen) == fewest
    if len(thresholds) == 1:
        assert fewest == 0


def test_the_nearest_of_the_integers_that_decide_alike_is_taken():
    # Multiples of 10 and a threshold at 7.5: with biases from -2.5 to 7.5 the first to reach it is 10.
    biases = np.array([-2.4, 2.4, 2.6, 7.4])
    assert rounded(biases, np.full((4, 1), 7.5), 10).tolist() == [-2, 2, 3, 7]


def test_a_bias_that_puts_sums_on_a_threshold_is_left_for_the_other():
    """Bias 21 would put the sum 21 on 42, where a float's last bit decides."""
    assert rounded(np.array([21.1]), np.array([[42.0]]), 21).tolist() == [22]


@pytest.mark.parametrize("count", [1, 3])
def test_a_layer_decides_as_its_float_bias_does(count, monkeypatch):
    """For every input of few levels, in exact integers; a single threshold is never missed."""
    random = np.random.default_rng(0)
    weight = QTensor(
        torch.from_numpy(random.choice(Grid.odd(2).codes, (2048, 4)).astype(np.int8)),
        torch.from_numpy(random.uniform(0.1, 1, 2048).astype(np.float32)),
        torch.zeros(2048, dtype=torch.int8),
        Grid.odd(2),
    )
    bias = torch.from_numpy(random.uniform(-3, 3, 2048).astype(np.float32))
    source = convert.IntegerActivation(torch.tensor(0.37), torch.tensor(0), Grid.unsigned(2))
    thresholds = np.array([-0.71, 1.13, 2.09])[:count]
    inputs = np.array(list(itertools.product(range(4), repeat=4)))
    values = (
        inputs @ weight.codes.numpy().T * (weight.scale.numpy() * np.float64(0.37)) + bias.numpy()
    )

    def changed():
        behind = torch.from_numpy(thresholds)
        layer = IntegerLayer("Linear", MatrixProduct(), weight, bias, source, behind)
        sums = inputs @ layer.codes.numpy().T.astype(np.int64) + layer.bias.numpy()
        found = sums * layer.bias_scale.double().numpy()
        assert np.abs(found - values).max() < 2 * layer.bias_scale.max()
        return int(((found[..., None] >= thresholds) != (values[..., None] >= thresholds)).sum())

    ours = changed()
    monkeypatch.setattr(integer, "rounded_to_keep_codes", lambda bias, thresholds, spread: bias)
    rounded = changed()
    assert ours == 0 if count == 1 else ours < rounded / 4
    assert rounded > 0


def behind(function, *settings):
    """The thresholds of the layer `first` of the integer network, and the quantizer behind it."""
    parts = {"first": conv(), "second": conv(6, 4)}
    network = qdeploy.convert(calibrated_by(Network(function, **parts), *settings))
    node = next(node for node in network.graph.nodes if node.target == "first")
    thresholds = convert.thresholds_behind(node, network)
    while not isinstance(called_module(node, network), convert.IntegerActivation):
        (node,) = node.users
    quantizer = called_module(node, network)
    quantizer.rounded = False  # the kernel in front of it had rounded already
    return thresholds, quantizer


@pytest.mark.parametrize(
    ("function", "settings", "count"),
    [
        (lambda self, x: self.second(self.first(x)), ("simqat", 2, 2), 3),
        (lambda self, x: self.second(self.first(x).relu()), ("lsq", 2, 2), 3),
        (lambda self, x: self.second(self.first(x).relu()), ("simqat", 2, 3), 7),
        (lambda self, x: self.second(self.first(x)), ("xnor", 1, 1), 1),
    ],
)
def test_the_code_changes_at_each_threshold_and_nowhere_else(function, settings, count):
    thresholds, quantizer = behind(function, *settings)
    assert len(thresholds) == count
    thresholds = thresholds.numpy()
    around = np.stack([thresholds - 1e-4, thresholds + 1e-4]).astype(np.float32)
    if settings[0] == "xnor":
        around = np.stack([thresholds * 1.01, thresholds * 0.99]).astype(np.float32)
    below, above = quantizer(torch.from_numpy(around))
    assert (below < above).all()
    assert len(torch.unique(torch.cat([below, above]))) == count + 1


def test_behind_a_relu6_there_are_no_thresholds():
    """The bias would have to mind its upper bound as well."""
    relu6 = torch.nn.functional.relu6
    thresholds, _ = behind(lambda self, x: self.second(relu6(self.first(x))), "lsq", 2, 2)
    assert thresholds is None
