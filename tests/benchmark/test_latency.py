"""Latency statistics on a clock that the test moves."""

import numpy as np
import pytest
from graphs import float_network, integer_network

from qdeploy.benchmark import open_session
from qdeploy.benchmark.latency import (
    FEWEST_ROUNDS,
    WARM_UP_RUNS,
    measure,
    run_in_turns,
)


class Clock:
    """Time that passes only while a call runs; a call takes its next duration, in seconds."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def call(self, name, durations):
        durations = iter([0.0] * WARM_UP_RUNS + list(durations))

        def run():
            self.calls.append(name)
            self.now += next(durations)

        return run


def test_times_are_those_of_each_call_in_milliseconds_without_the_warm_up():
    clock = Clock()
    durations = np.random.default_rng(0).uniform(0.001, 0.004, (2, 20))
    calls = [clock.call(name, row) for name, row in zip("ab", durations, strict=True)]
    times = run_in_turns(calls, rounds=20, seconds=10, clock=clock)
    np.testing.assert_allclose(times, durations * 1e3)


def test_calls_take_turns_after_the_warm_up():
    clock = Clock()
    run_in_turns(
        [clock.call(name, [0.001] * 6) for name in "abc"], rounds=6, seconds=10, clock=clock
    )
    assert "".join(clock.calls[3 * WARM_UP_RUNS :]) == "abc" * 6


@pytest.mark.parametrize(
    ("rounds", "seconds", "expected"),
    [
        (50, 100, 50),  # the rounds are the limit
        (50, 10, 10),  # 2 calls of 1 s each: 20 s are spent after 10 rounds
        (50, 0.1, FEWEST_ROUNDS),  # too slow for the budget
        (2, 0.1, 2),  # fewer rounds were asked for
    ],
)
def test_rounds_and_seconds_both_bound_the_measurement(rounds, seconds, expected):
    clock = Clock()
    calls = [clock.call(name, [1.0] * rounds) for name in "ab"]
    assert run_in_turns(calls, rounds, seconds, clock).shape == (2, expected)


def test_rows_hold_percentiles_throughput_and_speedup(monkeypatch):
    times = np.random.default_rng(0).uniform(1, 9, (2, 40))
    monkeypatch.setattr("qdeploy.benchmark.latency.run_in_turns", lambda *args: times)
    networks = {"float.onnx": float_network(), "model.onnx": integer_network()}
    sessions = {n: open_session(m.SerializeToString(), "cpu") for n, m in networks.items()}
    rows = measure(sessions, batch=16, rounds=40, threads=1)
    for row, own, (name, session) in zip(rows, times, sessions.items(), strict=True):
        ordered = np.sort(own)
        assert (row.file, row.batch, row.rounds) == (name, 16, 40)
        assert row.provider == "CPUExecutionProvider"
        assert (row.load_ms, row.file_bytes) == (session.load_ms, session.file_bytes)
        assert row.p50_ms == pytest.approx((ordered[19] + ordered[20]) / 2)
        assert row.p90_ms == pytest.approx(ordered[35] + 0.1 * (ordered[36] - ordered[35]))
        assert row.p99_ms == pytest.approx(ordered[38] + 0.61 * (ordered[39] - ordered[38]))
        assert row.images_per_second == pytest.approx(16 * 40 / (own.sum() / 1e3))
        assert row.speedup == pytest.approx(np.median(times[0]) / np.median(own))
