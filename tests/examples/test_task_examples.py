"""The recipes of examples/tasks run in small, on the digits that come with scikit-learn."""

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from qdeploy.cli import main

FOLDER = Path(__file__).parents[2] / "examples" / "tasks"
SMALL = {
    "segmentation": (
        "data.options={digits='digits', pictures='digits', count=40, size=40}",
        "data.batch_size=10",
    ),
    "super_resolution": ("data.options={pictures='digits'}", "model.options={channels=1}"),
    "rows": ("data.options={digits='digits'}",),
    "detection": (
        "data.options={digits='digits', pictures='digits', count=40, size=48}",
        "data.batch_size=10",
        "export.gates={ap50=0.0}",
    ),
}  # fmt: skip
# What a network that has learned nothing scores: mIoU, dB of PSNR, top-1. Boxes need more than this.
CHANCE = {"segmentation": 0.01, "super_resolution": 9.0, "rows": 0.2, "detection": -1.0}
OUTPUTS = {
    "segmentation": ["logits"],
    "super_resolution": ["output"],
    "rows": ["logits"],
    "detection": ["centres", "sides"],
}


def run(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def test_every_recipe_is_run_here():
    assert {file.stem for file in FOLDER.glob("*.toml")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_it_trains_and_its_file_is_proven(name, tmp_path):
    short = ("train.epochs=1", "train.float_epochs=1", "data.workers=0")
    settings = [part for setting in (*SMALL[name], *short) for part in ("--set", setting)]
    run("train", FOLDER / f"{name}.toml", *settings, "-o", tmp_path / "run")
    record = json.loads(run("export", tmp_path / "run", "--max-drop", 100, "--json"))
    given = onnx.load(tmp_path / "run" / "model.onnx").graph.output
    assert [output.name for output in given] == OUTPUTS[name]
    headline = record["scores"][0]["name"]
    assert record["accuracy"]["onnx"][headline] > CHANCE[name]
    assert record["accuracy"]["onnx"][headline] == pytest.approx(
        record["accuracy"]["trained"][headline]
    )
    assert float(record["agreement"]["sqnr"]) > 60
    gates = {gate["name"]: gate["passed"] for gate in record["gates"]}
    assert all(gates.values())
    assert ("min_ap50" in gates) == (name == "detection")
    assert ("sizes" in record and len(record["sizes"]) == 3) == (name == "super_resolution")
