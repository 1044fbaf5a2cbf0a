"""One list of sections, which both Markdown and HTML show."""

import re
from dataclasses import replace

import pytest
from parsed_page import Page
from sample_records import BARE, FULL

from qdeploy.record import BitsWork, Complexity
from qdeploy.report import sections as listed
from qdeploy.report.charts import bars
from qdeploy.report.html import report_page
from qdeploy.report.markdown import markdown
from qdeploy.report.section import Chart, Section


def titles(text, pattern):
    return re.findall(pattern, text, re.MULTILINE)


@pytest.mark.parametrize("record", [FULL, BARE], ids=["full", "bare"])
def test_both_show_the_same_in_the_same_order(record):
    in_html = titles(report_page(record), r"<h2>(.*?)</h2>")
    in_markdown = titles(markdown(record), r"^## (.*)$")
    assert in_markdown == [title for title in in_html if title != "Codes"]  # histograms alone
    assert len(in_markdown) == len(set(in_markdown)) >= 11


def test_a_new_section_is_one_function(monkeypatch):
    monkeypatch.setattr(listed, "SECTIONS", listed.SECTIONS[:])

    @listed.section
    def energy(record):
        return Section(
            "Energy",
            "Of one image.",
            ("Part", "Joule"),
            (("all of " + record.file, "0.25"),),
            charts=lambda: [Chart(bars({"all": 0.25}, ["0.25 J"], "all"))],
        )

    assert "## Energy\n\nOf one image.\n\n| Part | Joule |\n" in markdown(FULL)
    page = Page(report_page(FULL))
    assert "Energy Of one image. Part Joule all of model.onnx 0.25" in " ".join(page.text)
    assert len(page.charts()) == len(FULL.layers) + 5 + 1
    assert page.open == []


def test_one_that_is_not_shown_is_nowhere(monkeypatch):
    monkeypatch.setattr(listed, "SECTIONS", [lambda record: Section("Energy", shown=False)])
    assert "Energy" not in markdown(FULL) + report_page(FULL)


@pytest.mark.parametrize("face", [markdown, report_page])
def test_a_float_run_has_no_integers_and_saves_nothing(face):
    work = BitsWork(None, None, layers=5, macs=1000, bit_operations=1000 * 32**2)
    complexity = Complexity(850, work.macs, work.bit_operations, (work,), ())
    text = face(replace(FULL, method="float", complexity=complexity))
    assert "against the float network in PyTorch" in text
    assert "100.00 % at 32 x 32 bits" in text
    assert "fewer bit operations" not in text


def test_every_link_of_the_proof_is_said_in_words():
    text = markdown(replace(FULL, checked=True))
    for words in (
        "Proven: equal to 1e-5 in evaluation, and in training where float trains on the batch.",
        "Close: 98.34 % and 98.33 %; biases are rounded to integers.",
        "every code, over 360 images on Intel(R) Xeon(R) Processor @ 2.70GHz, CPUExecutionProvider",
        "Proven: 0 of 1,693,440 codes differ in 1 tensor; behind float operators 2 of 43,200 in 1 tensor, "
        "by 1 at most; what float operators made is close, not proven.",
        "| conv1, relu | integer kernels | 1,693,440 | 0 | 0 steps |",
        "| gelu | float operators | 43,200 | 2 | 1 step |",
    ):
        assert words in text
    differing = replace(FULL.exactness.tensors[0], differing=7)
    exactness = replace(FULL.exactness, tensors=(differing,))
    text = markdown(replace(FULL, checked=False, exactness=exactness))
    assert "Not proven: prepare was told not to check." in text
    assert "Not exact: 7 of 1,693,440 codes differ in 1 tensor." in text
    assert "Close: 99.72 % the same." in markdown(replace(FULL, exactness=None))


@pytest.mark.parametrize("face", [markdown, report_page])
def test_trained_means_the_integers_in_pytorch(face):
    text = face(FULL)
    assert "against the integers in PyTorch" in text
    assert not re.search(r"training network|evaluation mode", text)


@pytest.mark.parametrize("face", [markdown, report_page])
def test_a_network_that_was_not_checked_is_named(face):
    told = "was not compared with the float one"
    assert told in face(replace(FULL, checked=False))
    assert told not in face(replace(FULL, checked=True))
