"""The comparison of runtimes: its networks are those of the zoo, its turns are fair."""

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from compare_inference import NETWORKS
from contenders import TURN_SECONDS, Contender, _turn, measure, onnxruntime
from tables import inference, markdown

from qdeploy.models import NETWORKS as ZOO

RESULTS = Path(__file__).parents[1] / "results" / "inference.json"


def sleeps(model, shape, threads):
    """Takes as many milliseconds as the model's name says."""
    return lambda: time.sleep(float(model) / 1e3)


def test_each_contender_is_timed_alone_and_a_failure_is_told(tmp_path):
    contenders = [
        Contender("slow", sleeps, "30"),
        Contender("fast", sleeps, "10"),
        Contender("broken", onnxruntime, str(tmp_path / "absent.onnx")),
    ]
    times = measure(contenders, (1, 3, 8, 8), threads=1, turns=1)
    assert list(times) == ["slow", "fast", "broken"]
    assert min(times["slow"]) >= 30
    assert min(times["fast"]) >= 10
    assert times["broken"].startswith("NoSuchFile")


def test_a_turn_leaves_out_its_first_run():
    calls = []

    def call():
        time.sleep(0.05 if calls else 2 * TURN_SECONDS)
        calls.append(1)

    times = _turn(call)
    assert len(times) == len(calls) - 1 >= 1


def test_the_results_are_those_of_the_networks_that_are_compared():
    rows = json.loads(RESULTS.read_text())["latency"]
    assert {row["network"] for row in rows} == set(NETWORKS)
    assert {network.reference for network in NETWORKS.values()} <= set(ZOO)


def test_the_table_has_a_row_for_each_setting_with_float_in_front():
    def row(contender, threads, p50, speed):
        setting = {"network": "resnet18", "batch": 1, "threads": threads}
        return {**setting, "contender": contender, "p50_ms": p50, "speed": speed}

    rows = [
        row("ORT float", 1, 30.0, 1.0),
        row("ORT int8", 1, 10.0, 3.0),
        row("ORT float", 2, 20.0, 1.0),
        row("ORT int8", 2, None, None),
    ]
    assert markdown(inference({"latency": rows})).splitlines() == [
        "| network | batch | threads | ORT float, ms | ORT int8 |",
        "| --- | --- | --- | --- | --- |",
        "| resnet18 | 1 | 1 | 30.00 | 3.00x |",
        "| resnet18 | 1 | 2 | 20.00 | not measured |",
    ]
