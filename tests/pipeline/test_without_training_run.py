"""A run of 0 epochs: a trained float network is calibrated, kept, exported and compared."""

import shutil

import pytest
import torch
from command_line import content, fails, logits, metrics, succeeds

import qdeploy
from qdeploy.pipeline.trained_run import load_run
from qdeploy.run import RunFolder

RECIPE = """
[model]
network = "lenet5"
[data]
dataset = "digits"
[quantize]
method = "simqat"
equalize = true
[train]
epochs = 0
lr = 0.05
calibration_batches = 3
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("without") / "mine.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def run(recipe):
    run = recipe.parent / "run"
    succeeds("train", recipe, "--set", "train.float_epochs=2", "-o", run)
    succeeds("export", run)
    return run


def test_it_is_kept_as_a_trained_run_is(run):
    assert torch.load(run / "last.pt", weights_only=True)["history"] == []
    assert (run / "best.pt").is_file()
    assert metrics(run) == []
    assert len(metrics(run / "float")) == 2
    assert "without training  test loss" in (run / "log.txt").read_text()
    assert "warning" not in (run / "log.txt").read_text()


def test_it_is_what_the_library_makes_of_the_same_network(run):
    found = load_run(RunFolder(run), "last", None, "cpu")
    images = [images for images, _ in found.data.train.epoch(0)][:3]
    expected = qdeploy.prepare(found.float_network, images[0], "simqat", equalize=True)
    qdeploy.calibrate(expected, images, "mse", correct_bias=True)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], value, msg=name)


def test_the_file_answers_as_the_float_network_does(run):
    found = load_run(RunFolder(run), "last", None, "cpu")
    images, _ = next(iter(found.data.test.epoch(0)))
    exported = torch.from_numpy(logits(run / "model.onnx", images.numpy()))
    with torch.no_grad():
        expected = found.float_network.eval()(images)
    assert (exported.argmax(1) == expected.argmax(1)).float().mean() > 0.98


def test_a_resumed_run_has_nothing_left_to_do(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    before = content(copy)
    succeeds("train", "-o", copy, "--resume")
    assert "nothing is left to do" in (copy / "log.txt").read_text()
    after = content(copy)
    for name in ("last.pt", "best.pt", "metrics.csv", "recipe.toml"):
        assert after[copy / name] == before[copy / name]


def test_a_run_that_stopped_before_it_was_kept_goes_on(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "last.pt").unlink()
    succeeds("train", "-o", copy, "--resume")
    kept, again = (torch.load(r / "last.pt", weights_only=True)["state"] for r in (run, copy))
    for name, value in kept.items():
        assert torch.equal(again[name], value), name


def test_weights_from_a_file_serve_as_well(run, recipe, tmp_path):
    weights = f"model.weights={run / 'float'}"
    succeeds("train", recipe, "--set", weights, "-o", tmp_path / "run")
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["state"]
    assert kept.keys() == torch.load(run / "last.pt", weights_only=True)["state"].keys()


def test_it_is_compared_with_other_runs(run, tmp_path):
    shown = succeeds("report", run, "-o", tmp_path / "page.html")
    assert "run" in shown


def test_biases_cannot_be_corrected_without_a_float_weight(run, recipe, tmp_path):
    changes = ("quantize.method=lsq", f"model.weights={run / 'float'}")
    settings = [word for change in changes for word in ("--set", change)]
    message = fails("train", recipe, *settings, "-o", tmp_path / "run")
    assert "correct_bias compares with the float weight, and conv1 trains another" in message
