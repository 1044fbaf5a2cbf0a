"""report: runs in all the states that a run can be in, and folders that are none."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import content, fails, metrics, succeeds

from qdeploy.recipe import Recipe


@pytest.fixture
def run(exported, tmp_path):
    """A copy of an exported run with a float baseline, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "first"))


def compared(*arguments):
    return json.loads(succeeds("report", *arguments, "--json"))["runs"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_json_has_the_figures_of_the_run_and_of_its_report(run, report):
    first, baseline = compared(run)
    rows = metrics(run)
    assert first == {
        "name": "first",
        "method": "slb",
        "bits": "w1a8",
        "epochs": 2,
        "epochs_done": 2,
        "last_top1": rows[-1]["test_top1"],
        "best_top1": max(row["test_top1"] for row in rows),
        "onnx_top1": report["accuracy"]["onnx"]["top1"],
        "agreement": report["agreement"]["share"],
        "file_bytes": (run / "model.onnx").stat().st_size,
        "smaller": (run / "float.onnx").stat().st_size / (run / "model.onnx").stat().st_size,
        "state": "exported",
    }
    assert (baseline["name"], baseline["bits"]) == ("first, float", "float")
    assert baseline["last_top1"] == metrics(run / "float")[-1]["test_top1"]
    assert baseline["state"] == "finished"


def test_runs_come_in_the_order_given(run, tmp_path):
    shutil.copytree(run, tmp_path / "another")
    names = [found["name"] for found in compared(tmp_path / "another", run)]
    assert names == ["another", "another, float", "first", "first, float"]
    names = [found["name"] for found in compared(run, tmp_path / "another")]
    assert names == ["first", "first, float", "another", "another, float"]


def test_it_prints_a_table_and_writes_the_page(run, tmp_path):
    printed = succeeds("report", run)
    assert "first: exported" in printed
    assert printed.splitlines()[-1] == "written: comparison.html"
    assert "first, float" in (tmp_path / "comparison.html").read_text()
    succeeds("report", run, "-o", "other.html")
    assert (tmp_path / "other.html").read_bytes()


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "below" / "first"))
    assert [found["name"] for found in compared(run, other)][::2] == [str(run), str(other)]


def test_the_working_directory_may_be_the_run(run, monkeypatch):
    monkeypatch.chdir(run)
    assert compared(".")[0]["name"] == "first"


def test_a_run_that_was_cut_off(run):
    shutil.rmtree(run / "float")
    (run / "report.json").unlink()
    (run / "metrics.csv").write_text("".join((run / "metrics.csv").open().readlines()[:2]))
    (found,) = compared(run)
    assert (found["epochs_done"], found["epochs"]) == (1, 2)
    assert found["state"] == "unfinished, not exported"
    assert found["file_bytes"] is None
    assert "1/2" in succeeds("report", run)


def test_a_run_that_has_not_begun(run):
    for file in ("metrics.csv", "report.json", "float/metrics.csv"):
        (run / file).unlink()
    found = compared(run)
    assert [row["last_top1"] for row in found] == [None, None]
    assert found[1]["state"] == "unfinished"


def test_float_activations_and_schedules_that_end_at_infinity(run):
    recipe = Recipe.load(run / "recipe.toml", ["quantize.act_bits=float"])
    (run / "recipe.toml").write_text(recipe.to_toml())
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    with (run / "metrics.csv").open("w") as file:
        table = csv.DictWriter(file, [*rows[0], "temperature"])
        table.writeheader()
        table.writerows({**row, "test_loss": "", "temperature": "inf"} for row in rows)
    assert compared(run)[0]["bits"] == "w1afloat"


class TestBadInput:
    def test_a_folder_that_is_no_run(self, run, tmp_path):
        (tmp_path / "photos").mkdir()
        message = fails("report", run, tmp_path / "photos")
        assert f"{tmp_path / 'photos'} is no run: it has no recipe.toml" in message
        assert "give a folder that `qdeploy train` wrote" in message
        assert not (tmp_path / "comparison.html").exists()

    def test_a_file(self, run):
        assert "is a file" in fails("report", run / "model.onnx", code=2)

    def test_a_run_twice(self, run):
        message = fails("report", run, run.parent / "first" / ".." / "first")
        assert f"{run} is given 2 times; give each run once" in message

    @pytest.mark.parametrize("text", ["epoch,lr\n1,fast\n", "epoch,lr\n1,2,3\n", "\x00\n\x00"])
    def test_metrics_that_are_no_numbers(self, run, text):
        (run / "metrics.csv").write_text(text)
        assert f"{run / 'metrics.csv'} is no table of numbers" in fails("report", run)

    def test_a_report_that_is_torn(self, run):
        (run / "report.json").write_text('{"name": "first"')
        assert f"{run / 'report.json'}: this is no report of qdeploy" in fails("report", run)

    def test_a_page_that_cannot_be_written(self, run, tmp_path):
        assert "cannot write" in fails("report", run, "-o", tmp_path / "absent" / "page.html")
        assert "is a directory" in fails("report", run, "-o", run, code=2)

    def test_nothing_in_the_runs_changes(self, run):
        before = content(run)
        succeeds("report", run)
        fails("report", run, run)
        assert content(run) == before


def test_it_runs_without_torch(run):
    code = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from qdeploy.cli import main
main(["report", r"{run}"])
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "first: exported" in found.stdout
