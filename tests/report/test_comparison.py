"""Several runs on one page and in one table of the terminal."""

import json
import math
from dataclasses import replace

import pytest
from parsed_page import Page
from rich.console import Console
from sample_records import BARE, FULL, epochs

from qdeploy.report.charts import LINES
from qdeploy.report.comparison import Run, run_data
from qdeploy.report.html import comparison_page
from qdeploy.report.table import comparison_table

EXPORTED = Run("first", "slb", "w1a8", 20, epochs(20), FULL)
UNFINISHED = Run("second", "simqat", "w4a8", 20, epochs(3), None)
BASELINE = Run("second, float", "float", "float", 8, epochs(8), None, is_baseline=True)
NOT_BEGUN = Run("third", "float", "float", 5, (), None)
RUNS = [EXPORTED, UNFINISHED, BASELINE, NOT_BEGUN]


def page(*runs):
    return Page(comparison_page(runs))


def table(*runs, width=80):
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(runs))
    return capture.get().splitlines()


class TestPage:
    def test_it_is_well_formed_and_needs_no_network(self):
        found = page(*RUNS)
        assert found.open == found.addresses == []
        assert not any("location.reload()" in script for script in found.scripts)

    def test_each_run_is_a_line_in_every_chart(self):
        drawn = page(EXPORTED, UNFINISHED, BASELINE).curves()
        columns = {
            "Test top-1": "test_top1",
            "Test loss": "test_loss",
            "Training loss": "train_loss",
            "Learning rate": "lr",
        }
        expected = {
            title: {run.name: [row[name] for row in run.rows] for run in RUNS[:3]}
            for title, name in columns.items()
        }
        found = {
            title: {line.label: line.values for line in chart.lines}
            for title, chart in drawn.items()
        }
        assert found == expected
        assert drawn["Test top-1"].lines[1].epochs == [1, 2, 3]

    def test_a_run_has_one_colour_and_its_baseline_the_same_dashed(self):
        for chart in page(EXPORTED, UNFINISHED, BASELINE).curves().values():
            first, second, baseline = chart.lines
            assert (first.color, second.color) == LINES[:2]
            assert baseline.color == second.color
            assert baseline.dash != second.dash == first.dash == []

    def test_a_run_without_epochs_keeps_its_colour_from_the_others(self):
        first, last = page(EXPORTED, NOT_BEGUN, UNFINISHED).curves()["Test top-1"].lines
        assert (first.color, last.color) == (LINES[0], LINES[2])

    def test_where_the_colours_begin_again_lines_are_told_apart(self):
        runs = [replace(EXPORTED, name=f"run {i}") for i in range(len(LINES) + 1)]
        lines = page(*runs).curves()["Test top-1"].lines
        assert len({line.color for line in lines}) == len(LINES)
        assert len({(line.color, str(line.dash)) for line in lines}) == len(runs)

    def test_the_legend_names_every_run(self):
        html = comparison_page(RUNS)
        legend = html.partition('<div class="legend">')[2].partition("</div>")[0]
        for run, color in zip(RUNS, (LINES[0], LINES[1], LINES[1], LINES[2]), strict=True):
            assert f' {color}"></span>{run.name}</span>' in legend

    def test_runs_of_which_none_has_begun(self):
        found = page(NOT_BEGUN)
        assert found.charts() == []
        assert "No epoch has ended yet." in " ".join(found.text)

    def test_a_value_that_diverged_is_a_gap(self):
        rows = [{**row, "test_loss": math.inf if row["epoch"] == 2 else 1.0} for row in epochs(3)]
        (line,) = page(replace(UNFINISHED, rows=tuple(rows))).curves()["Test loss"].lines
        assert math.isnan(line.values[1])

    def test_hostile_names_are_text(self):
        name = "</script><script src=x>alert('1')</script>"
        found = page(replace(EXPORTED, name=name), UNFINISHED)
        assert found.open == found.addresses == []
        assert " ".join(found.text).count(name) == 2, "in the table and in the legend"
        assert found.curves()["Test top-1"].lines[0].label == name

    @pytest.mark.parametrize(
        "row",
        [
            # 0.98 - 0.8 * 0.8**epoch; sizes and accuracies are those of FULL
            "first slb w1a8 20 97.08 % 97.08 % 98.31 % 99.72 % 16,480 28.4x",
            "second simqat w4a8 3/20, unfinished 57.04 % 57.04 % not exported",
            "second, float float 8 84.58 % 84.58 % third",
            "third float 0/5, unfinished not exported",
        ],
    )
    def test_the_table_has_a_row(self, row):
        assert row in " ".join(page(*RUNS).text)


class TestFigures:
    def test_the_best_epoch_is_not_the_last(self):
        rows = [
            {**row, "test_top1": top1}
            for row, top1 in zip(epochs(3), (0.5, 0.75, 0.625), strict=True)
        ]
        data = run_data(replace(UNFINISHED, rows=tuple(rows)))
        assert (data["last_top1"], data["best_top1"]) == (0.625, 0.75)

    def test_json_has_the_numbers_of_the_reports_and_none_for_what_is_missing(self):
        first, second, *_ = (json.loads(json.dumps(run_data(run), allow_nan=False)) for run in RUNS)
        assert first["onnx_top1"] == 0.9831
        assert first["agreement"] == 359 / 360
        assert first["file_bytes"] == 16_480
        assert first["smaller"] == 467_800 / 16_480
        assert (second["epochs_done"], second["epochs"]) == (3, 20)
        assert [second[key] for key in ("onnx_top1", "agreement", "file_bytes", "smaller")] == [
            None
        ] * 4

    def test_a_report_that_measured_little(self):
        data = run_data(replace(EXPORTED, record=BARE))
        assert data["file_bytes"] == 16_480
        assert [data[key] for key in ("onnx_top1", "agreement", "smaller")] == [None] * 3

    def test_an_export_of_an_earlier_epoch_is_said(self):
        longer = replace(EXPORTED, epochs=30, rows=epochs(30))
        assert longer.state == "exported after epoch 20"
        assert "98.31 % exported after epoch 20" in " ".join(page(longer).text)
        assert replace(longer, epochs=40).state == "unfinished, exported after epoch 20"


class TestTerminal:
    def test_it_fits_80_columns(self):
        long = replace(EXPORTED, name="resnet18-imagenet-slb-w1a8-seed-1")
        shown = table(long, *RUNS)
        assert max(map(len, shown[: len(RUNS) + 5])) <= 80
        (row,) = (line.split() for line in shown if "seed-1" in line and "…" in line)
        head, tail = row[0].split("…")
        assert long.name.startswith(head)
        assert long.name.endswith(tail)
        assert row[1:] == [
            "slb",
            "w1a8",
            "20",
            "97.08",
            "97.08",
            "98.31",
            "99.72",
            "16,480",
            "28.4x",
        ]

    def test_rows_come_in_the_order_given(self):
        shown = [line.strip() for line in table(*reversed(RUNS[:2]))]
        starts = [line.split()[0] for line in shown if "w1a8" in line or "w4a8" in line]
        assert starts == ["second", "first"]

    def test_what_is_missing_is_said_below(self):
        shown = [line.strip() for line in table(*RUNS)]
        assert shown[-3:] == [
            "first: exported",
            "second: unfinished, not exported",
            "third: unfinished, not exported",
        ]
        assert "second simqat w4a8 3/20 57.04 57.04" in [" ".join(s.split()) for s in shown]

    def test_names_are_text_and_no_markup_of_the_terminal(self):
        odd = replace(EXPORTED, name="[red]a[/red]")
        text = "\n".join(table(odd, width=120))
        assert text.count("[red]a[/red]") == 2
