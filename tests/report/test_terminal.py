"""The tables of the terminal, on a plain output of 80 columns."""

from dataclasses import replace

import pytest
from rich.console import Console
from sample_records import BARE, FULL, IN_FLOAT, MACHINE, PRODUCTS

from qdeploy.benchmark import BenchmarkResult
from qdeploy.record import Coverage
from qdeploy.report.table import benchmark_table, kernel_table, record_table, shorten


def lines(table, width=80):
    """What a plain terminal shows: lines, and all of it as one text without line breaks."""
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    shown = capture.get().splitlines()
    return shown, " ".join(" ".join(shown).split())


@pytest.mark.parametrize(
    "figure",
    [
        "98.31 %",
        "trained 98.33 %, float 98.61 %",
        "99.72 %",
        "largest difference 0.0123",
        "Exact 0 of 1,693,440 codes differ in 1 tensor; behind float operators 2 of 43,200 in 1 tensor",
        "28.4x smaller than float (468 kB)",  # 467800 / 16480
        "1.12x the bound",  # 16480 / 14700
        "417 k 97.38 % at 1 x 8 bits; 29.6x fewer bit operations",  # 416520 x 1024 / 14426880
        "2.60x as fast as float.onnx (0.333 ms)",
        "5 integer",
        "integer: 2 QLinearConv, 3 QGemm; float: none; provider: CPU",
        "Coverage 50.00 % 1 of 2 quantized products ran in integers; head: its output goes to Sigmoid",
        "passed max-drop 0.5: 0.3",
        "FAILED max-size 16,000: 16,480",
    ],
)
def test_the_record_shows(figure):
    assert figure in lines(record_table(FULL), width=160)[1]


def test_everything_fits_80_columns_uncut():
    result = BenchmarkResult(MACHINE, FULL.latency, FULL.placements)
    kernels = kernel_table(FULL.placements[1])
    for table in (record_table(FULL), record_table(BARE), benchmark_table(result), kernels):
        shown, text = lines(table)
        assert max(map(len, shown)) <= 80
        assert "…" not in text
        assert "\x1b" not in text


def test_the_work_of_a_network_is_one_line():
    shown, _ = lines(record_table(FULL))
    (line,) = [" ".join(line.split()) for line in shown if "bit operations" in line]
    assert line == "MACs 417 k 97.38 % at 1 x 8 bits; 29.6x fewer bit operations"


def test_what_was_not_measured_is_said():
    text = lines(record_table(BARE), width=160)[1]
    for label in ("Accuracy", "Agreement", "Latency", "Kernels", "Coverage"):
        assert f"{label} not measured" in text
    assert "MACs 0 for one input" in text
    assert "float not measured; bound not measured" in text


def test_a_file_larger_than_float_is_called_larger():
    grown = replace(FULL, size=replace(FULL.size, onnx=2 * 467_800))
    assert "2.00x larger than float" in lines(record_table(grown), width=160)[1]


def test_a_file_measured_alone_is_compared_with_none():
    alone = replace(FULL, latency=(FULL.latency[1],))
    text = lines(record_table(alone), width=160)[1]
    assert "0.128 ms batch 1, 1 thread on CPU" in text
    assert "as fast as" not in text


def test_the_benchmark_has_a_line_for_each_file_and_batch_size():
    shown, text = lines(benchmark_table(BenchmarkResult(MACHINE, FULL.latency, FULL.placements)))
    cells = [line.split() for line in shown if line.startswith("  ") or ".onnx" in line]
    assert ["model.onnx", "16.5", "kB", "3.46", "64"] in [row[:5] for row in cells]
    assert "float.onnx integer: none; float: 2 FusedConv, 3 FusedGemm" in text
    assert f"1 thread, CPU provider, on {MACHINE.cpu}; times in ms" in text
    assert sum(row[:1] == ["float.onnx"] and "kB" in row for row in cells) == 2


def on_gpu(row, **measured):
    return replace(row, provider="CUDAExecutionProvider", **measured)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"copied_ms": 0.45678}, "data on the GPU; times"),
        ({"cuda_graph": True}, "data on the GPU, as a CUDA graph; times"),
        ({}, "data copied in each run; times"),  # of older versions
    ],
)
def test_of_a_gpu_it_is_told_where_the_data_lay(measured, words):
    rows = tuple(on_gpu(row, **measured) for row in FULL.latency)
    machine = replace(MACHINE, gpu="NVIDIA H100")
    text = lines(benchmark_table(BenchmarkResult(machine, rows, ())), width=160)[1]
    assert f"1 thread, CUDA provider, on NVIDIA H100, {words} in ms" in text
    assert ("speed copied" in text) == (" 0.457" in text) == ("copied_ms" in measured)


def test_exceptions_are_named_below_the_benchmark():
    result = BenchmarkResult(MACHINE, FULL.latency, FULL.placements)
    text = lines(benchmark_table(result), width=160)[1]
    assert "model.onnx 1 of 2 quantized products ran in integers; integer: 2 QLinearConv" in text
    assert f"head: {IN_FLOAT}" in text
    assert "float.onnx integer: none" in text


def test_a_float_file_has_no_coverage():
    bare = replace(FULL.placements[1], products=PRODUCTS[2:], coverage=Coverage(0, 0))
    assert "model.onnx: none of its products is quantized" in lines(kernel_table(bare))[1]
    text = lines(record_table(replace(FULL, placements=(bare,))), width=160)[1]
    assert "Coverage none none of its products is quantized" in text


def test_kernels_are_listed_in_order_with_types_time_and_share():
    shown, _ = lines(kernel_table(FULL.placements[1]))
    assert [" ".join(line.split()) for line in shown[4:-1]] == [
        "QuantizeLinear 1 QuantizeLinear CPU float uint8 0.00400 ms 4.00 %",
        "(added at load) Transpose CPU uint8 uint8 0.00100 ms 1.00 %",
        "conv1 QLinearConv CPU uint8 uint8 0.0800 ms 80.00 %",
        "head FusedGemm CPU float float 0.0150 ms 15.00 %",
    ]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(20, "resnet18-w1a8.onnx"), (18, "resnet18-w1a8.onnx"), (13, "resn…1a8.onnx"), (4, "r…nx")],
)
def test_a_name_gives_up_its_middle(width, expected):
    assert shorten("resnet18-w1a8.onnx", width) == expected
    assert len(expected) <= width


def test_a_long_file_name_stays_on_one_line():
    name = "resnet18-imagenet-slb-w1a8-finetuned.onnx"
    rows = tuple(replace(row, file=name) for row in FULL.latency[:1])
    table = benchmark_table(BenchmarkResult(MACHINE, rows, ()))
    shown, _ = lines(table)
    assert max(map(len, shown)) <= 80
    (row,) = (line.split() for line in shown if "kB" in line)
    head, tail = row[0].split("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert len(tail) > len(head) > 1
    assert name in lines(table, width=160)[1]


def test_kernels_that_cannot_be_listed_are_not_invented():
    unlisted = tuple(replace(placed, operators=None, coverage=None) for placed in FULL.placements)
    result = BenchmarkResult(MACHINE, FULL.latency, unlisted)
    assert "model.onnx not measured" in lines(benchmark_table(result))[1]
    assert "Kernels not measured" in lines(record_table(replace(FULL, placements=unlisted)))[1]
