"""metrics.csv and the line on the console."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import RECORD

from qdeploy.errors import QdeployError
from qdeploy.metrics import read_metrics, write_metrics
from qdeploy.tasks.classification import Classification

SCORES = tuple(Classification().metrics(10))


def test_the_file_holds_every_figure_exactly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics(path, [RECORD, RECORD], SCORES)
    with path.open() as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == (
        "epoch,steps,lr,train_loss,train_top1,train_top5,train_error1,"
        "test_loss,test_top1,test_top5,test_error1,seconds,temperature"
    )
    assert [list(map(float, row)) for row in rows] == 2 * [
        [2, 938, 0.05, 0.1, 0.96875, 0.99, 0.03125, 1 / 3, 0.9722, 1.0, 1 - 0.9722, 4.25, 1.2]
    ]


def test_a_schedule_may_end_in_infinity(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [replace(RECORD, progress={"t": math.inf})], SCORES)
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["t"]) == math.inf


def test_a_run_without_epochs_has_a_header(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [], SCORES)
    assert (tmp_path / "metrics.csv").read_text() == (
        "epoch,steps,lr,train_loss,train_top1,train_top5,train_error1,"
        "test_loss,test_top1,test_top5,test_error1,seconds\n"
    )


def test_the_line_on_the_console() -> None:
    assert RECORD.text(SCORES) == (
        "epoch   2  lr 0.05  train loss 0.1000  top-1 96.88 %  test loss 0.3333  top-1 97.22 %"
        "  top-5 100.00 %  4.2 s"
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == ()
    write_metrics(path, [RECORD, RECORD], SCORES)
    assert read_metrics(path) == (RECORD.row(), RECORD.row())


def test_empty_cells_and_infinity_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train_top5,temperature\n1,,0.5\n2,0.75,inf\n3\n")
    assert read_metrics(path) == (
        {"epoch": 1.0, "train_top5": None, "temperature": 0.5},
        {"epoch": 2.0, "train_top5": 0.75, "temperature": math.inf},
        {"epoch": 3.0, "train_top5": None, "temperature": None},
    )


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("words,numbers\n1,2\n")
    with pytest.raises(QdeployError, match=r"no table of numbers .*no column 'epoch'"):
        read_metrics(path)
