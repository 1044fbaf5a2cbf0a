"""Sentences beside the figures: where a target's own runtime has not run, and where int8 loses."""

from dataclasses import replace

import pytest
from sample_records import BARE, FULL, latency

from qdeploy.record import Agreement, Delivery, Record
from qdeploy.report.advice import advice
from qdeploy.report.html import report_page
from qdeploy.report.markdown import markdown

SLOW = replace(
    FULL,
    latency=(
        latency("float.onnx", 1, 0.03, 1.0, 467_800),
        latency("model.onnx", 1, 0.06, 0.5, 16_480),
    ),
)


@pytest.mark.parametrize("record", [FULL, BARE])
def test_there_is_none_where_nothing_is_to_say(record):
    assert advice(record) == ()


def test_integers_slower_than_float_suggest_float_activations():
    (sentence,) = advice(SLOW)
    assert "slower than float here (0.500x)" in sentence
    assert 'act_bits = "float"' in sentence
    assert sentence in markdown(SLOW)
    assert "slower than float here" in report_page(SLOW)


def test_it_is_not_suggested_to_who_has_it():
    layers = tuple(replace(layer, act_bits=None) for layer in SLOW.layers)
    assert advice(replace(SLOW, layers=layers)) == ()


def test_one_batch_size_that_is_faster_is_enough():
    rows = (*SLOW.latency, latency("model.onnx", 64, 1.0, 1.5, 16_480))
    assert advice(replace(SLOW, latency=rows)) == ()


def test_tensorrt_that_has_not_run_is_said():
    delivery = Delivery("tensorrt", activations=(3, 10))
    first, second = advice(replace(FULL, delivery=delivery))
    assert "TensorRT itself has not run the file" in first
    assert second.startswith("3 of 10 activations have a larger step than in training")
    (only,) = advice(replace(FULL, delivery=replace(delivery, activations=(0, 10))))
    assert only == first


def test_tensorrt_that_has_run_needs_no_warning():
    rows = tuple(replace(row, provider="TensorrtExecutionProvider") for row in SLOW.latency)
    delivery = Delivery("tensorrt", activations=(0, 10))
    assert advice(replace(SLOW, latency=rows, delivery=delivery)) == ()


def with_operators(record, **counts):
    placements = tuple(
        replace(
            p, operators=(p.operators or {}) | {f"com.microsoft::{k}": n for k, n in counts.items()}
        )
        for p in record.placements
    )
    return replace(record, placements=placements)


def test_where_the_gates_stand_is_said():
    (sentence,) = advice(with_operators(FULL, QLinearSigmoid=4))
    assert sentence.startswith("4 sigmoids compute on codes")
    openvino = replace(FULL, delivery=Delivery("openvino"))
    (sentence,) = advice(with_operators(openvino, Sigmoid=3))
    assert sentence.startswith("3 sigmoids are left in float: OpenVINO")
    assert advice(with_operators(FULL, Sigmoid=3)) == ()


def test_adds_are_not_for_openvino_as_they_are():
    (sentence,) = advice(with_operators(FULL, QLinearAdd=2))
    assert "--target openvino" in sentence
    assert "LP_TRANSFORMS_MODE" in sentence
    assert advice(with_operators(replace(FULL, delivery=Delivery("openvino")), QLinearAdd=2)) == ()


def test_openvino_says_how_it_agrees_and_pixels_how_they_go_in():
    delivery = Delivery(
        "openvino", "uint8, normalised in the graph", None, "OpenVINO 2026.4",
        Agreement(1000, 0.998, 0.0123, 0.001),
    )  # fmt: skip
    record = replace(FULL, delivery=delivery)
    image, runtime = advice(record)
    assert image == "Input: uint8, normalised in the graph."
    assert "OpenVINO 2026.4 and ONNX Runtime agree on 99.80 % of 1,000 images" in runtime
    assert "0.0123" in runtime
    assert "| Target | openvino; input uint8, normalised in the graph |" in markdown(record)
    assert Record.from_json(record.to_json()) == record


def test_a_report_from_before_targets_still_reads():
    text = FULL.to_json().replace('"delivery"', '"ignored"')
    assert Record.from_json(text).delivery == Delivery()
