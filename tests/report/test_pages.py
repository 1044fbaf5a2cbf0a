"""The HTML pages, parsed: they show the record and need no network."""

import json
import re
from dataclasses import replace

import pytest
from parsed_page import Page
from sample_records import BARE, DEEP, FULL, layer

from qdeploy.report.html import report_page


@pytest.fixture(scope="module")
def full():
    return Page(report_page(FULL))


@pytest.mark.parametrize("record", [FULL, BARE], ids=["full", "bare"])
def test_the_report_is_well_formed_and_needs_no_network(record):
    page = Page(report_page(record))
    assert page.open == []
    assert page.addresses == []


def test_styles_load_nothing():
    style = re.findall(r"<style>(.*?)</style>", report_page(FULL), re.DOTALL)
    assert style
    assert not any("url(" in css or "@import" in css for css in style)


@pytest.mark.parametrize(
    "figure",
    [
        "98.31 %",
        "98.33 %",
        "99.72 %",
        "0.0123",
        "28.4x smaller than float (468 kB)",
        "467,800",
        "2.60x as fast as float.onnx",
        "2 QLinearConv, 3 QGemm",
        "1 bit 8 bit 1 405,600 97.38 % 3,244,800",
        "head Linear float float 850 10,920 11,182,080",
        "18,338",
        "Intel(R) Xeon(R) Processor",
        "conv2 slb, 1 bit (-1, 1), per channel",
        '"epochs": 20',
        "max-size 16,000 16,480 failed",
        "Coverage 50.00 % 1 of 2 quantized products ran in integers; head: its output goes to",
        "head Gemm FusedGemm its output goes to Sigmoid before it is quantized",
        "4 kernels Layer Kernel Provider From To Time Share QuantizeLinear 1 QuantizeLinear CPU",
        "fc1 Linear, 1 bit, 48,000 weights",
    ],
)
def test_the_report_shows(full, figure):
    assert figure in " ".join(full.text)


def test_each_layer_has_a_histogram_beside_sizes_accuracy_and_three_curves(full):
    assert len(full.charts()) == len(FULL.layers) + 5
    assert len(Page(report_page(DEEP)).charts()) == 60 + 5


def test_histograms_hold_the_counts_of_the_codes():
    record = replace(BARE, layers=(layer("conv", "Conv2d", 1000, 2),))
    counts = record.layers[0].levels
    assert sum(counts.values()) == 1000
    drawn = json.dumps(Page(report_page(record)).charts())
    assert json.dumps([counts[code] for code in sorted(counts)]) in drawn


def test_a_layer_left_in_float_has_no_histogram():
    in_float = replace(FULL.layers[0], weight_bits=None, act_bits=None, levels={})
    page = Page(report_page(replace(BARE, layers=(in_float,))))
    assert len(page.charts()) == 1
    assert "conv1 Conv2d float float 150" in " ".join(page.text)


def test_missing_parts_are_said():
    text = " ".join(Page(report_page(BARE)).text)
    for part in ("Training", "Kernels", "Coverage", "Agreement", "Latency"):
        assert f"{part} not measured" in text
    assert "Gates" not in text


def test_names_are_text_and_no_markup():
    page = Page(report_page(replace(BARE, name="<script src=x>", settings="a < b & c")))
    assert page.addresses == []
    assert "a < b & c" in " ".join(page.text)
