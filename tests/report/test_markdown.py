"""The Markdown report, read back as tables."""

from dataclasses import replace

import pytest
from sample_records import BARE, DEEP, FULL, IN_FLOAT

from qdeploy.report.markdown import markdown


def tables(text):
    """{heading: rows of cells} of the tables below each heading."""
    found = {}
    for part in text.split("\n## "):
        rows = [line[2:-2].split(" | ") for line in part.splitlines() if line[:1] == "|"]
        found[part.partition("\n")[0]] = rows
    return found


def test_every_table_is_rectangular():
    for record in (FULL, BARE, DEEP):
        text = markdown(record)
        for line in text.splitlines():
            assert line.startswith("|") == line.endswith("|")
        for rows in tables(text).values():
            assert len({len(row) for row in rows}) <= 1


def test_tables_hold_the_numbers_of_the_record():
    found = tables(markdown(FULL))
    assert ["ONNX", "98.31 %", "99.71 %"] in found["Accuracy"]
    assert ["float32 ONNX", "468 kB", "467,800", "28.4x"] in found["Size"]
    assert ["Images", "360", "1", "99.72 %", "54.2 dB", "0.0123", "0.00131"] in found["Agreement"]
    assert ["max-size", "16,000", "16,480", "failed"] in found["Gates"]
    assert found["Complexity"][2:] == [
        ["1 bit", "8 bit", "1", "405,600", "97.38 %", "3,244,800"],
        ["float", "float", "1", "10,920", "2.62 %", "11,182,080"],
        ["all", "", "2", "416,520", "", "14,426,880"],
    ]
    assert found["Complexity by layer"][2:] == [
        ["conv1", "Conv2d", "1 bit", "8 bit", "60,156", "405,600", "3,244,800"],
        ["head", "Linear", "float", "float", "850", "10,920", "11,182,080"],
        ["all", "", "", "", "61,006", "416,520", "14,426,880"],
    ]
    assert found["Layers"][2][:5] == ["conv1", "Conv2d", "1 bit", "8 bit", "150"]
    assert found["Training"][2][0] == "20"
    assert found["Coverage"][2:] == [["head", "Gemm", "FusedGemm", IN_FLOAT]]
    assert found["Kernels"][3:5] == [
        ["(added at load)", "Transpose", "CPU", "uint8", "uint8", "0.00100 ms", "1.00 %"],
        ["conv1", "QLinearConv", "CPU", "uint8", "uint8", "0.0800 ms", "80.00 %"],
    ]
    assert [row[0] for row in found["Latency"][2:]] == ["float.onnx", "model.onnx"] * 2


@pytest.mark.parametrize(
    "heading", ["Agreement", "Latency", "Operators", "Layers", "Kernels", "Training"]
)
def test_missing_parts_are_said(heading):
    text = markdown(BARE)
    part = next(part for part in text.split("\n## ") if part.startswith(heading))
    assert part.removesuffix("\n\n</details>\n").rstrip().endswith("_not measured_")
    assert "## Coverage" not in text


def test_a_bar_in_a_name_does_not_open_a_cell():
    odd = replace(FULL, layers=(replace(FULL.layers[0], name="a|b"),))
    assert "| a\\|b | Conv2d |" in markdown(odd)
