"""What the report, inspect and benchmark say of other processors."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from sample_records import FULL, MACHINE

from qdeploy.record import BenchmarkResult, Placement, Record, Saturation
from qdeploy.report.advice import advice
from qdeploy.report.processors import processors, saturating, warning
from qdeploy.report.table import benchmark_table

NONE = Saturation("model.onnx", (), 3)
SOME = Saturation("model.onnx", ("conv1", "fc3"), 3)
OLD = replace(MACHINE, instructions=("AVX2",), saturates=True)
NEW = replace(MACHINE, instructions=("AVX2", "AVX512", "VNNI"), saturates=False)


def test_layers_are_counted_among_the_quantized_ones():
    assert saturating(SOME) == "2 of 3 layers may saturate on x86 without VNNI"
    assert saturating(replace(SOME, layers=("a",), quantized=1)).startswith("1 of 1 layer may")
    assert saturating(NONE) == "no layer can saturate on x86 without VNNI"


def test_a_warning_says_whether_it_is_this_processor_and_what_to_do():
    for machine, here in ((OLD, True), (NEW, False), (MACHINE, False)):
        words = warning(SOME, machine)
        assert ("what they give here is wrong" in words) == here
        assert "reduce_range = true" in words
        assert "session.x64quantprecision = 1" in words


def told(record):
    return dict(processors(record))


def test_the_report_names_the_processor_and_the_layers():
    found = told(replace(FULL, machine=NEW, saturation=SOME))
    assert f"{MACHINE.cpu} (AVX2, AVX512, VNNI)" in found
    assert found["x86 with AVX2 or AVX512 alone"].endswith("without VNNI: conv1, fc3.")
    exact = told(replace(FULL, saturation=NONE))["x86 with AVX2 or AVX512 alone"]
    assert "the same codes" in exact
    assert "Not known" in told(FULL)["x86 with AVX2 or AVX512 alone"]
    assert MACHINE.cpu in told(FULL)


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        ({"QLinearConv": 3}, "give the same codes; not run"),
        (
            {"QLinearConv": 3, "com.microsoft::QLinearAdd": 8},
            "8 QLinearAdd compute in fixed point there.* does not cover it",
        ),
    ],
)
def test_what_arm_computes_otherwise_is_counted(operators, words):
    placed = Placement("model.onnx", operators, {})
    assert re.search(words, told(replace(FULL, placements=(placed,)))["ARM"])


def test_advice_has_the_warning_where_there_is_something_to_warn_of():
    assert warning(SOME, MACHINE) in advice(replace(FULL, saturation=SOME))
    for quiet in (None, NONE):
        assert not any("saturate" in line for line in advice(replace(FULL, saturation=quiet)))


def test_a_benchmark_names_the_instruction_sets_and_warns():
    result = BenchmarkResult(OLD, FULL.latency, FULL.placements, (SOME,))
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(benchmark_table(result))
    shown = " ".join(console.export_text().split())  # it is wrapped
    assert f"on {MACHINE.cpu} (AVX2)" in shown
    assert warning(SOME, OLD) in shown


def test_a_record_keeps_what_it_says_and_one_without_is_read():
    record = replace(FULL, machine=OLD, saturation=SOME)
    assert Record.from_json(record.to_json()) == record
    older = json.loads(FULL.to_json())
    del older["saturation"], older["machine"]["saturates"], older["machine"]["instructions"]
    assert Record.from_json(json.dumps(older)) == FULL
