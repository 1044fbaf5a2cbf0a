"""Activation ranges, against numpy on all the values and against brute force."""

import numpy as np
import pytest
import torch
from quantizers import activations
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange
from qdeploy.preparation import ranges
from qdeploy.preparation.ranges import BINS, RANGES, Histogram


def batches_of(kind, count=4):
    """Batches of which each is larger than the one before."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(20, 250, generator=generator) * (1 + i) for i in range(count)]
    if kind == "relu":
        return [batch.relu() for batch in batches]
    return [batch + 0.5 for batch in batches] if kind == "shifted" else batches


def seen_of(batches):
    seen = Histogram()
    for batch in batches:
        seen.add(batch)
    return seen


def values_of(batches):
    return np.concatenate([batch.numpy().ravel() for batch in batches]).astype(np.float64)


def range_of(kind, batches, bits=8, percentile=99.0, **options):
    found = RANGES[kind](seen_of(batches), MovingRange(bits, **options), percentile)
    return tuple(end.item() for end in found)


def rounded(values, low, high, bits):
    """Jacob et al.'s affine rounding, in numpy."""
    low, high, top = min(low, 0), max(high, 0), 2**bits - 1
    scale = (high - low) / top
    zero = np.clip(np.round(-low / scale), 0, top)
    return (np.clip(np.round(values / scale) + zero, 0, top) - zero) * scale


def error_of(values, ends, bits):
    return np.square(rounded(values, *ends, bits) - values).mean()


class TestTheHistogram:
    @pytest.mark.parametrize("kind", ["normal", "relu", "shifted"])
    def test_it_counts_as_numpy_does_when_later_batches_are_larger(self, kind):
        batches = batches_of(kind)
        seen = seen_of(batches)
        values = values_of(batches)
        expected, _ = np.histogram(values, BINS, (-seen.reach, seen.reach))
        assert seen.reach >= np.abs(values).max() > seen.reach / 2
        assert seen.counts.sum() == len(values)
        # A value on an edge may round to either side.
        assert np.abs(np.cumsum(seen.counts.numpy()) - np.cumsum(expected)).max() <= 3

    def test_the_extremes_are_exact(self):
        batches = batches_of("shifted")
        values = values_of(batches)
        assert range_of("minmax", batches) == (values.min(), values.max())

    def test_a_batch_of_zeros_says_nothing(self):
        zeros, batch = torch.zeros(5, 5), torch.full((3,), 1e-6)
        assert torch.equal(seen_of([zeros, batch]).counts, seen_of([batch]).counts)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_is_refused(self, bad):
        with pytest.raises(QdeployError, match="look for nan and inf"):
            Histogram().add(torch.tensor([1.0, bad]))


class TestThePercentile:
    @pytest.mark.parametrize("percentile", [99.99, 99.0, 90.0, 60.0])
    @pytest.mark.parametrize("kind", ["normal", "relu", "shifted"])
    def test_it_is_numpys_to_within_a_bin(self, kind, percentile):
        batches = batches_of(kind)
        values, bin_ = values_of(batches), 2 * seen_of(batches).reach / BINS
        low, high = range_of("percentile", batches, percentile=percentile)
        assert low == pytest.approx(np.percentile(values, 100 - percentile), abs=1.01 * bin_)
        assert high == pytest.approx(np.percentile(values, percentile), abs=1.01 * bin_)

    def test_all_of_the_values_are_the_extremes(self):
        batches = batches_of("shifted")
        assert range_of("percentile", batches, percentile=100.0) == range_of("minmax", batches)

    def test_it_lets_an_outlier_go(self):
        outlier = torch.tensor([1000.0])
        low, high = range_of("percentile", [*batches_of("relu"), outlier], percentile=99.9)
        without = np.percentile(values_of(batches_of("relu")), 99.9)
        assert low == pytest.approx(0, abs=2 * 1000 / BINS)
        assert high == pytest.approx(without, rel=0.05)


class TestTheLeastError:
    @pytest.mark.parametrize("bits", [8, 4, 2])
    @pytest.mark.parametrize("kind", ["normal", "relu", "shifted"])
    def test_it_is_that_of_brute_force(self, kind, bits):
        batches = batches_of(kind)
        values = values_of(batches)[::4]
        low, high = values.min(), values.max()
        lows = [0.0] if kind == "relu" else np.linspace(0.04, 1, 25) * low
        best = min(
            error_of(values, (a, b), bits) for a in lows for b in np.linspace(0.04, 1, 25) * high
        )
        found = error_of(values, range_of("mse", [torch.tensor(values)], bits), bits)
        assert found <= 1.01 * best
        assert found <= error_of(values, (low, high), bits)

    def test_at_few_bits_it_beats_the_extremes_by_far(self):
        batches = batches_of("relu")
        values = values_of(batches)
        found = error_of(values, range_of("mse", batches, 3), 3)
        assert found < 0.6 * error_of(values, range_of("minmax", batches), 3)

    def test_a_symmetric_quantizer_is_judged_as_it_rounds(self):
        batches = batches_of("normal", count=1)
        low, high = range_of("mse", batches, 4, symmetric=True)
        quantizer = MovingRange(4, symmetric=True).eval()
        values = batches[0].flatten()

        def error(magnitude):
            quantizer.observe(torch.tensor([-magnitude, magnitude]))
            return (quantizer(values) - values).square().mean().item()

        tried = np.linspace(0.5, 4, 100)
        errors = []
        for magnitude in (*tried, max(-low, high)):
            quantizer.reset()
            errors.append(error(magnitude))
        assert errors[-1] <= 1.01 * min(errors)


class TestTheEntropy:
    def test_it_keeps_what_is_uniform(self):
        values = torch.linspace(0, 1, 100_000)
        assert range_of("entropy", [values]) == (0, pytest.approx(1, rel=0.01))

    @pytest.mark.parametrize("sign", [1, -1])
    def test_it_lets_outliers_go(self, sign):
        body = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
        low, high = range_of("entropy", [sign * torch.cat([body, torch.tensor([6.0, 9.0])])])
        assert max(-low, high) == pytest.approx(1, rel=0.2)
        assert min(-low, high) == pytest.approx(0, abs=1e-4)

    def test_a_spike_at_zero_changes_nothing(self):
        body = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).abs()
        spiked = torch.cat([body, torch.zeros(1_000_000)])
        expected = pytest.approx(range_of("entropy", [body]), abs=1e-3)
        assert range_of("entropy", [spiked]) == expected

    def test_the_divergence_is_scipys(self):
        entropy = pytest.importorskip("scipy.stats").entropy
        counts = torch.tensor([4.0, 2, 0, 6, 1, 3, 5, 1], dtype=torch.float64)
        # Six bins in two levels of three: 4 2 0 | 6 1 3, and 5 + 1 beyond them.
        q = [3, 3, 0, 10 / 3, 10 / 3, 10 / 3]
        expected = entropy([4, 2, 0, 6, 1, 3 + 6], q)
        assert ranges.divergence(counts, slice(0, 6), 2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", RANGES)
def test_a_tensor_of_zeros_has_an_empty_range(kind):
    assert range_of(kind, [torch.zeros(10)]) == (0, 0)


@pytest.mark.parametrize("kind", RANGES)
def test_one_value_alone_is_kept(kind):
    low, high = range_of(kind, [torch.full((10,), 2.5)])
    assert rounded(np.array([2.5]), low, high, 8) == pytest.approx(2.5, rel=0.01)


def prepared():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    return qdeploy.prepare(network, torch.zeros(2, 2, 5, 5), "simqat")


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 2, 5, 5, generator=generator) * size for size in (1, 3, 2)]


@pytest.mark.parametrize("kind", RANGES)
def test_calibrate_gives_each_quantizer_its_range(kind):
    network = prepared()
    qdeploy.calibrate(network, images(), kind, percentile=95.0)
    first = next(iter(activations(network).values()))
    expected = range_of(kind, images(), percentile=95.0)
    assert (first.minimum.item(), first.maximum.item()) == expected
    network.eval()(images()[0])


def test_calibrate_leaves_no_hook():
    network = prepared()
    qdeploy.calibrate(network, images(), "mse")
    with pytest.raises(RuntimeError):
        qdeploy.calibrate(network, [torch.zeros(1, 7, 2, 2)], "mse", correct_bias=True)
    for module in network.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": "minmaks"}, "no ranges 'minmaks'. Did you mean minmax? Allowed: mean, minmax"),
        ({"ranges": None}, "no ranges None"),
        ({"percentile": 0.9999}, "percentile is 0.9999; allowed: above 50, up to 100"),
        ({"percentile": 101.0}, "up to 100"),
    ],
)
def test_what_calibrate_does_not_have_is_refused_before_anything_changes(options, message):
    network = prepared()
    with pytest.raises(QdeployError) as error:
        qdeploy.calibrate(network, images(), **options)
    assert message in str(error.value)
    assert not next(iter(activations(network).values())).batches
