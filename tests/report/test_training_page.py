"""The page that follows a run: what it draws, what it says, and how long it reloads."""

import math
import re
from datetime import datetime, timezone

import pytest
from parsed_page import Page
from sample_records import epochs

from qdeploy.report.html import training_page
from qdeploy.report.progress import Progress

WRITTEN = datetime(2026, 11, 21, 12, 0, 5, tzinfo=timezone.utc)


def page(rows, planned=20, going=False, title="lenet5"):
    return Page(training_page(Progress(rows, planned, going, WRITTEN), title))


def curves(rows):
    return page(rows).curves()


def column(*values, name="temperature", **others):
    """Lines of metrics.csv with one column more."""
    rows = zip(epochs(len(values)), values, strict=True)
    return [{**row, name: value, **others} for row, value in rows]


def text(found):
    return " ".join(found.text)


def reload_script(found):
    return [script for script in found.scripts if "location.reload()" in script]


class TestCurves:
    def test_losses_accuracies_and_learning_rate_are_those_of_the_rows(self):
        rows = epochs(20)
        drawn = {
            title: {line.label: line.values for line in chart.lines}
            for title, chart in curves(rows).items()
        }
        columns = {
            "Loss": ("train_loss", "test_loss"),
            "Accuracy": ("train_top1", "test_top1", "test_top5"),
            "Learning rate": ("lr",),
        }
        assert {title: list(lines.values()) for title, lines in drawn.items()} == {
            title: [[row[name] for row in rows] for name in names]
            for title, names in columns.items()
        }
        assert list(drawn["Accuracy"]) == ["train top-1", "test top-1", "test top-5"]

    def test_they_run_over_the_epochs(self):
        for chart in curves(epochs(3)).values():
            assert all(line.epochs == [1, 2, 3] for line in chart.lines)

    def test_lines_of_a_chart_have_colours_of_their_own(self):
        lines = curves(column(0.5, 0.6, name="train_top5"))["Accuracy"].lines
        assert len({line.color for line in lines}) == len(lines) == 4

    def test_what_mirrors_an_accuracy_or_counts_has_no_chart(self):
        rows = column(0.4, 0.3, name="test_error1", train_error1=0.2)
        assert list(curves(rows)) == ["Loss", "Accuracy", "Learning rate"]

    def test_a_missing_value_is_a_gap(self):
        chart = curves(column(1.0, None, 4.0))["Temperature"]
        (line,) = chart.lines
        assert line.epochs == [1, 2, 3]
        assert line.values == [1.0, pytest.approx(math.nan, nan_ok=True), 4.0]

    def test_an_infinite_value_is_a_gap_and_said(self):
        chart = curves(column(1.0, 2.0, math.inf, math.inf))["Temperature, infinite from epoch 3"]
        (line,) = chart.lines
        assert line.values[:2] == [1.0, 2.0]
        assert all(map(math.isnan, line.values[2:]))
        assert chart.x_range[1] >= 4, "charts of a page stand in line"

    @pytest.mark.parametrize("value", [None, math.inf])
    def test_a_column_without_any_number_has_no_chart(self, value):
        assert list(curves(column(value, value))) == ["Loss", "Accuracy", "Learning rate"]


class TestAxes:
    def test_a_loss_that_falls_by_a_decade_is_logarithmic(self):
        rows = epochs(30)
        assert rows[0]["train_loss"] > 10 * rows[-1]["train_loss"]
        assert curves(rows)["Loss"].is_log
        assert rows[0]["train_loss"] < 10 * rows[4]["train_loss"]
        assert not curves(rows[:5])["Loss"].is_log

    def test_its_ticks_are_round_and_lie_around_the_values(self):
        chart = curves(epochs(30))["Loss"]
        values = [value for line in chart.lines for value in line.values]
        assert {"0.05", "0.1", "0.2", "0.5", "1", "2"} < {f"{tick:g}" for tick in chart.ticks}
        assert min(chart.ticks) <= min(values)
        assert max(values) <= max(chart.ticks)

    def test_an_accuracy_never_is(self):
        assert not curves(epochs(20))["Accuracy"].is_log

    def test_a_schedule_that_falls_in_steps_is_and_a_cosine_is_not(self):
        steps = [0.1] * 5 + [0.01] * 5 + [0.001] * 5
        cosine = [0.05 * (1 + math.cos(math.pi * (e + 0.99) / 15)) for e in range(15)]
        assert cosine[0] > 1000 * cosine[-1]
        assert curves(column(*steps, name="lr"))["Learning rate"].is_log
        assert not curves(column(*cosine, name="lr"))["Learning rate"].is_log

    @pytest.mark.parametrize("other", [0.0, -1.0])
    def test_values_that_have_no_logarithm_are_drawn_linearly(self, other):
        assert not curves(column(other, 1.0, 1.0, 100.0, 100.0))["Temperature"].is_log

    def test_a_constant_stands_in_the_middle_of_an_axis_of_its_size(self):
        assert curves(column(1e-4, 1e-4))["Temperature"].y_range == [0, 2e-4]

    def test_a_perfect_accuracy_has_no_axis_above_it(self):
        names = ("train_top1", "test_top1", "test_top5")
        rows = [{**row, **dict.fromkeys(names, 1.0)} for row in epochs(3)]
        low, high = curves(rows)["Accuracy"].y_range
        assert low == 0
        assert 1 < high < 1.1


class TestWhatItSays:
    def test_how_far_a_run_is(self):
        found = page(epochs(3), going=True)
        assert "Training: 3 of 20 epochs; this page reloads itself" in text(found)
        assert "written 2026-11-21 12:00:05 UTC" in text(found)
        assert "Epoch 3 of 20 1.20 s an epoch; 20.4 s to go" in text(found)  # 17 epochs of 1.2 s

    def test_the_latest_figures(self):
        *before, last = epochs(3)
        rows = [*before, {**last, "test_top1": 0.25, "test_loss": 1.25, "lr": 2e-6}]
        assert rows[1]["test_top1"] == pytest.approx(0.468)
        words = text(page(rows, going=True))
        assert "Test top-1 25.00 % best 46.80 %, after epoch 2" in words
        assert "Test loss 1.25 train 1.37" in words  # 2.2 * 0.85**3 + 0.02
        assert "Learning rate 2.00e-06" in words

    def test_that_it_is_finished(self):
        words = text(page(epochs(3), planned=3))
        assert "Finished: 3 of 3 epochs" in words
        assert "to go" not in words
        assert "--resume" not in words

    def test_that_it_was_stopped_and_what_goes_on(self):
        words = text(page(epochs(3), planned=4))
        assert "Stopped after 3 of 4 epochs" in words
        assert "qdeploy train --resume" in words
        assert "to go" not in words

    def test_figures_that_are_missing(self):
        words = text(page([{"epoch": 1.0, "train_loss": 0.5, "test_top1": None}], going=True))
        assert "Test top-1 not measured" in words
        assert "Test loss not measured train 0.500" in words

    def test_that_no_epoch_has_ended(self):
        found = page((), going=True)
        assert found.charts() == []
        assert "Training: 0 of 20 epochs" in text(found)
        assert "No epoch has ended yet." in text(found)

    def test_names_are_text_and_no_markup(self):
        found = page(epochs(1), title="lenet5 <script src=x>", going=True)
        assert found.open == found.addresses == []
        assert "lenet5 <script src=x>" in text(found)


class TestReloading:
    def test_only_the_page_of_a_run_that_goes_on_does(self):
        assert len(reload_script(page(epochs(3), going=True))) == 1
        assert reload_script(page(epochs(3), planned=3)) == []
        assert reload_script(page(epochs(3), planned=4)) == []

    @pytest.mark.parametrize(
        ("seconds", "pause", "patience"),
        [(0.2, 2, 120), (20.0, 20, 200), (600.0, 30, 6000), (None, 10, 86400)],
    )
    def test_about_once_an_epoch_until_ten_epochs_brought_no_news(self, seconds, pause, patience):
        rows = [{**row, "seconds": seconds} for row in epochs(2)]
        (script,) = reload_script(page(rows, going=True))
        written, limit = re.search(r"Date.now\(\) / 1000 - ([\d.]+) < ([\d.]+)\)", script).groups()
        (milliseconds,) = re.findall(r"location.reload\(\), ([\d.]+)\)", script)
        assert float(written) == WRITTEN.timestamp()
        assert float(limit) == patience
        assert float(milliseconds) == 1000 * pause
