"""The rows of the accuracy tables: what is run, what is skipped, and what the tables say of it."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import accuracy
import plans
import reproduce
import task_table

from qdeploy.errors import QdeployError
from qdeploy.metrics import read_metrics
from qdeploy.pipeline.train import train
from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder

PLAN = """
seeds = [0, 1]
set = ["train.epochs=1", "train.float_epochs=0", "data.batch_size=200"]

[rows.float]
recipe = "lenet5-digits-slb-w1a8"
set = ["quantize.method=float", "quantize.options={}", "quantize.layers={}"]

[rows.one-bit]
recipe = "lenet5-digits-slb-w1a8"
starts_from = "float"
about = "W1A8"

[rows.other]
recipe = "lenet5-digits-slb-w1a8"
starts_from = "float"
about = "W1A8"
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A place with one plan, `small`, and no results."""
    monkeypatch.setattr(plans, "ROOT", tmp_path)
    monkeypatch.setattr(plans, "PLANS", tmp_path)
    monkeypatch.setattr(reproduce.main.params[0].type, "choices", ["small"])
    (tmp_path / "results").mkdir()
    (tmp_path / "small.toml").write_text(PLAN)
    return tmp_path


def reproduces(root, *rows):
    """What the command prints."""
    arguments = ["small", *rows, "--runs", str(root / "runs"), "--device", "cpu"]
    result = CliRunner().invoke(reproduce.main, arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def figures(root):
    return json.loads((root / "results" / "small.json").read_text())


def test_a_row_is_run_once_after_the_one_that_it_starts_from(root):
    assert "one-bit" in reproduces(root, "one-bit", "--seed", "1")
    start, row = figures(root)
    assert [(one["row"], one["seed"]) for one in (start, row)] == [("float", 1), ("one-bit", 1)]
    report = json.loads((root / "runs/small/one-bit-s1/report.json").read_text())
    assert row["accuracy"] == report["accuracy"]
    assert row["agreement"] == report["agreement"]
    assert row["size"]["onnx"] == (root / "runs/small/one-bit-s1/model.onnx").stat().st_size
    assert row["latency"]["model.onnx"] == report["latency"][1]["p50_ms"]
    counted = [tensor for tensor in report["exactness"]["tensors"] if tensor["integer"]]
    assert row["codes"] == {
        "compared": sum(tensor["elements"] for tensor in counted),
        "differing": sum(tensor["differing"] for tensor in counted),
    }
    # It started from those weights: they are the float network of its report.
    assert report["accuracy"]["float"] == start["accuracy"]["trained"]
    assert "--seed 1" in row["command"]
    assert str(root) not in json.dumps(figures(root))

    before = (root / "results" / "small.json").read_bytes()
    assert "in small.json already" in reproduces(root, "one-bit", "--seed", "1")
    assert (root / "results" / "small.json").read_bytes() == before


def test_rows_that_the_plan_has_otherwise_today_are_run_anew(root):
    """The row itself, and one that starts from a row that is another today."""
    reproduces(root, "one-bit", "--seed", "0")
    (root / "small.toml").write_text(PLAN.replace("quantize.layers={}", "train.lr=0.2"))
    assert plans.Plan.load("small").figures() == []
    assert accuracy.of_plan("small")[1:] == []
    before = figures(root)
    assert "already" not in reproduces(root, "one-bit", "--seed", "0")
    start, row = figures(root)
    assert start["overrides"] != before[0]["overrides"]
    assert row["accuracy"]["float"] != before[1]["accuracy"]["float"]


def test_rows_of_a_recipe_that_says_something_else_today_are_run_anew(root):
    recipe = root / "own.toml"
    own = 'extends = "lenet5-digits-slb-w1a8"\n'
    recipe.write_text(own)
    (root / "small.toml").write_text(PLAN.replace("lenet5-digits-slb-w1a8", str(recipe)))
    plan, fingerprint = plans.Plan.load("small"), plans.fingerprint.__wrapped__(str(recipe))
    row = {"row": "other", "seed": 0, **plan.identity("other", 0)}
    (root / "results" / "small.json").write_text(json.dumps([row]))
    assert len(plan.figures()) == 1

    recipe.write_text(own + "# Said otherwise.\n[train]\nlr = 0.05\n")
    assert plans.fingerprint.__wrapped__(str(recipe)) == fingerprint
    recipe.write_text(own + "[train]\nlr = 0.06\n")
    plans.fingerprint.cache_clear()
    assert plan.figures() == []


def test_a_start_whose_figures_are_there_but_not_its_run_is_trained_again(root):
    reproduces(root, "float", "--seed", "0")
    shutil.rmtree(root / "runs")
    reproduces(root, "one-bit", "--seed", "0")
    start, row = figures(root)
    assert row["accuracy"]["float"] == start["accuracy"]["trained"]


def test_a_start_that_was_cut_off_is_trained_to_its_end(root):
    (root / "small.toml").write_text(
        PLAN.replace('set = ["quantize', 'set = ["train.epochs=2", "quantize')
    )
    plan = plans.Plan.load("small")
    recipe = Recipe.load("lenet5-digits-slb-w1a8", plan.overrides(plan.rows["float"], 0))
    run = RunFolder(root / "runs" / "small" / "float-s0")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run.path, device="cpu", stream=Interrupts())
    assert len(read_metrics(run.metrics)) == 1
    reproduces(root, "one-bit", "--seed", "0")
    assert len(read_metrics(run.metrics)) == 2


class Interrupts(io.StringIO):
    """Ctrl+C when the first epoch is told."""

    def write(self, text):
        if text.startswith("epoch   1"):
            raise KeyboardInterrupt
        return super().write(text)


def test_a_row_that_fails_does_not_end_the_others(root):
    diverges = 'set = ["train.lr=1e30"]\n\n[rows.other]'
    (root / "small.toml").write_text(PLAN.replace('about = "W1A8"\n\n[rows.other]', diverges))
    result = CliRunner().invoke(
        reproduce.main, ["small", "--seed", "0", "--runs", str(root / "runs"), "--device", "cpu"]
    )
    assert result.exit_code == 1
    assert "one-bit, seed 0: training diverged" in result.output
    assert [one["row"] for one in figures(root)] == ["float", "other"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("seeds =", "seed =", "seed"), ('"float"\nabout', '"start"\nabout', "no row 'start'")],
)
def test_a_plan_with_a_slip_is_refused(root, old, new, said):
    (root / "small.toml").write_text(PLAN.replace(old, new, 1))
    with pytest.raises((QdeployError, ValidationError), match=said):
        plans.Plan.load("small")


def test_a_row_that_is_not_in_the_plan(root):
    result = CliRunner().invoke(reproduce.main, ["small", "two-bit"])
    assert result.exit_code == 2
    assert "small has no row two-bit; it has float, one-bit, other" in result.output


def test_a_table_gives_mean_and_deviation_and_the_loss_against_float_of_the_same_seed(root):
    plan = plans.Plan.load("small")

    def measured(row, seed, top1):
        exactly = {"top1": top1, "top5": 1.0}
        quantized = row != "float"
        return {
            "row": row,
            "seed": seed,
            **plan.identity(row, seed),
            "method": "slb" if quantized else "float",
            "bits": [1, 8],
            "epochs": 1,
            "accuracy": {"float": exactly, "trained": exactly, "onnx": exactly},
            "agreement": {"top1": 1.0},
            "size": {"onnx": 1000 if quantized else 15500, "float": 15500},
        }

    rows = [
        measured("float", 0, 0.98),
        measured("float", 1, 0.96),
        measured("one-bit", 0, 0.95),
        measured("one-bit", 1, 0.94),
        measured("other", 0, 0.99),  # of one seed only
    ]
    (root / "results" / "small.json").write_text(json.dumps(rows))
    head, row, _ = accuracy.of_plan("small", "W1A8")
    found = dict(zip(head, row, strict=True))
    assert found["ONNX"] == "94.50% ± 0.71%"
    assert found["drop"] == "+2.50 points ± 0.71"  # 3 and 2 points
    assert found["bits"] == "W1A8"
    assert found["epochs"] == "1 + 1"
    assert found["smaller than float"] == "15.5x"
    assert [row[0] for row in accuracy.of_plan("small")[1:]] == ["float", "one-bit"]
    assert [row[:2] for row in accuracy.of_widths("small")[1:]] == [
        ("float", "float"),
        ("W1A8", "one-bit"),
    ]


def test_the_table_of_tasks_is_of_the_score_that_each_row_has(root):
    (root / "tasks.toml").write_text(PLAN.replace("[0, 1]", "[0]"))
    plan = plans.Plan.load("tasks")
    score = {"name": "error", "title": "size error", "unit": "px", "higher_is_better": False}

    def measured(row, epochs, error):
        forms = {"float": 1.5, "trained": error, "onnx": error, "prepared": error + 0.25}
        return {
            "row": row, "seed": 0, **plan.identity(row, 0), "method": "slb", "bits": [1, 8], "epochs": epochs,
            "scores": [score], "accuracy": {form: {"error": x} for form, x in forms.items()},
            "codes": {"compared": 12345, "differing": 0}, "size": {"onnx": 500, "float": 8000},
            "latency": {"float.onnx": 0.5, "model.onnx": 0.25},
        }  # fmt: skip

    rows = [measured("float", 3, 1.5), measured("one-bit", 2, 1.75)]
    (root / "results" / "tasks.json").write_text(json.dumps(rows))
    head, row = task_table.of_tasks()
    assert dict(zip(head, row, strict=True)) == {
        "example": "one", "bits": "W1A8", "epochs": "3 + 2", "score": "size error", "float": "1.5 px",
        "prepared": "2 px", "file": "1.75 px", "codes that differ": "0 of 12,345", "bytes": "500",
        "smaller than float": "16.0x", "p50 ms of float": "0.50", "of the file": "0.25",
    }  # fmt: skip


@pytest.mark.parametrize("name", plans.plans())
def test_every_row_of_every_plan_is_a_recipe(name):
    plan = plans.Plan.load(name)
    for row in plan.rows.values():
        weights = ("model.weights=last.pt",) if row.starts_from else ()
        recipe = plans.recipe_of(row.recipe, (*plan.overrides(row, 0), *weights))
        if row.starts_from:
            start = plan.rows[row.starts_from]
            source = plans.recipe_of(start.recipe, plan.overrides(start, 0))
            assert source.quantize.method == "float"
            assert source.model == recipe.model.model_copy(update={"weights": None})
