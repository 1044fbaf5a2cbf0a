"""Numbers as words, against what a person would write."""

import pytest

from qdeploy.report import words


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (60_123, "60.1 kB"),
        (467_800, "468 kB"),
        (46_750_000, "46.8 MB"),
        (1_570_000_000, "1.57 GB"),
        (5_000_000_000_000, "5,000 GB"),
        (None, "not measured"),
    ],
)
def test_size(count, expected):
    assert words.size(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"), (999, "999"), (1000, "1.00 k"), (159_042_048, "159 M"), (1_814_073_344, "1.81 G"),
        (4_187_324_678_144, "4.19 T"),
    ],
)  # fmt: skip
def test_quantity(count, expected):
    assert words.quantity(count) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0108865, "0.0109"), (2.6, "2.60"), (12.54, "12.5"), (99.96, "100"), (11_532.4, "11,532")],
)
def test_three_significant_digits(value, expected):
    assert words.significant(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.25, "0.25"), (1_572_864, "1,572,864"), (None, "not measured")]
)
def test_exact(value, expected):
    assert words.exact(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.381, "0.381 s"), (59, "59.0 s"), (60, "1.00 min"), (750, "12.5 min"), (11_520, "3.20 h")],
)
def test_duration(seconds, expected):
    assert words.duration(seconds) == expected


def test_absence_is_said_and_zero_is_not_absence():
    assert words.percent(None) == words.milliseconds(None) == "not measured"
    assert words.percent(0.0) == "0.00 %"
    assert words.percent(0.98944) == "98.94 %"


def test_kernels_and_counts():
    assert words.kernels({"QLinearConv": 20, "QGemm": 1}) == "20 QLinearConv, 1 QGemm"
    assert words.kernels({}) == "none"
    assert words.plural(1, "thread") == "1 thread"
    assert words.plural(10_000, "image") == "10,000 images"
