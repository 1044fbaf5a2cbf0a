"""A run whose recipe asks for a file of open sizes: the report, inspect and benchmark say what it takes."""

import json

import numpy as np
import onnxruntime
import pytest
from command_line import fails, succeeds

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )

def flat():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))
"""
RECIPE = """
[model]
network = "net.py:{function}"

[data]
dataset = "digits"
batch_size = 300

[quantize]
method = "simqat"

[train]
epochs = 1

[export]
dynamic = ["height", "width"]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def train(function):
        folder = tmp_path_factory.mktemp(function)
        (folder / "net.py").write_text(NETWORK)
        (folder / "mine.toml").write_text(RECIPE.format(function=function))
        succeeds("train", folder / "mine.toml", "-o", folder / "run")
        return folder / "run"

    return train


@pytest.fixture(scope="module")
def exported(trained):
    run = trained("small")
    return run, json.loads(succeeds("export", run, "--json"))


def test_the_file_takes_any_size(exported):
    run, _ = exported
    for name in ("model.onnx", "float.onnx"):
        session = onnxruntime.InferenceSession(run / name)
        assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
        for size in ((28, 28), (13, 50)):
            (found,) = session.run(None, {"input": np.zeros((2, 1, *size), np.float32)})
            assert found.shape == (2, 10)


def test_the_report_says_which_sizes_were_proven(exported):
    run, record = exported
    assert [one["size"] for one in record["sizes"]] == ["28x28", "21x15", "35x43"]
    assert all(one["codes"] > 0 and one["differing"] == 0 for one in record["sizes"])
    assert all(one["largest"] == 0 for one in record["sizes"])
    codes = sum(one["codes"] for one in record["sizes"])
    assert record["exactness"]["samples"] == 360 + 3 * 4
    assert sum(t["elements"] for t in record["exactness"]["tensors"]) > codes
    report = (run / "report.md").read_text()
    assert "## Sizes" in report
    assert "at 28x28, 21x15, 35x43" in report


def test_inspect_and_benchmark_call_open_axes_by_name(exported):
    file = exported[0] / "model.onnx"
    assert "float32 [batch, 1, height, width]" in succeeds("inspect", file)
    message = fails("benchmark", file)
    assert "leaves height and width open" in message
    assert "--shape input=1x1x224x224" in message
    printed = json.loads(succeeds("benchmark", file, "--shape", "input=2x1x20x30", "--json"))
    assert [row["batch"] for row in printed["latency"]] == [2]
    assert "allowed: the name of an input" in fails("benchmark", file, "--shape", "1x1x2", code=2)


def test_another_target_is_compared_by_logits(exported):
    run, _ = exported
    record = json.loads(
        succeeds("export", run, "--target", "tensorrt", "-o", run / "rt.onnx", "--json")
    )
    assert [one["codes"] for one in record["sizes"]] == [None] * 3


def test_a_network_of_one_size_is_refused_and_no_file_is_left(trained):
    run = trained("flat")
    assert "takes no other height and width than 28x28" in fails("export", run)
    assert not (run / "model.onnx").exists()


def test_an_axis_that_images_have_not(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE.format(function="small").replace("width", "depth"))
    (tmp_path / "net.py").write_text(NETWORK)
    message = fails("train", tmp_path / "mine.toml", "-o", tmp_path / "run")
    assert "export.dynamic.1: given 'depth', allowed: 'height' or 'width'" in message
