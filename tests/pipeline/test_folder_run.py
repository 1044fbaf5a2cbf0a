"""A run on image files, from folders as people have them to the classes that `qdeploy predict` names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import (
    assert_same_checkpoint,
    checkpoint,
    content,
    fails,
    metrics,
    succeeds,
    train_in_two_processes,
)
from PIL import Image

from qdeploy.data.decoding import fit_of
from qdeploy.pictures.preprocessing import fit_metadata, preprocessing_of
from qdeploy.pictures.reading import read
from qdeploy.pipeline.benchmark import data_keys
from qdeploy.pipeline.predict import predict
from qdeploy.pipeline.trained_run import load_run
from qdeploy.recipe import DataSection
from qdeploy.run import RunFolder
from qdeploy.training.session import Session

CLASSES = ("blue", "green", "grey", "red")
TINTS = np.array([[40, 40, 200], [40, 200, 40], [120, 120, 120], [200, 40, 40]])

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )
"""

RECIPE = """
model = { network = "net.py:make" }
quantize = { method = "simqat", weight_bits = 4 }
train = { epochs = 2, lr = 0.1, schedule = "constant" }

[data]
dataset = "folder"
root = "photos"
batch_size = 12
workers = 0
augmentation = "light"
colour_jitter = 0.1
on_bad_file = "skip"
scan = "full"
"""


def write(path, label, number, mode="RGB"):
    random = np.random.default_rng([label, number])
    pixels = TINTS[label] + random.integers(-40, 41, (22 + number % 3, 30, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A recipe beside photos/train, val and test, of which two files are bad."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    (folder / "recipe.toml").write_text(RECIPE)
    for split, count in (("train", 12), ("val", 5), ("test", 4)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                write(folder / "photos" / split / name / f"{number:02}.png", label, number)
    write(folder / "photos/train/grey/palette.gif", 2, 50, "P")
    (folder / "photos/train/red/03.png").write_bytes(b"not a picture")
    cut = folder / "photos/val/red/01.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def run(project):
    succeeds("train", project / "recipe.toml", "-o", project / "run")
    return project / "run"


@pytest.fixture(scope="module")
def exported(run):
    succeeds("export", run, "--checkpoint", "best")
    return run


def test_the_log_says_what_was_chosen_and_left_out(run):
    log = (run / "log.txt").read_text()
    assert "image_size is 23: half of the 48 training images have a short side of 23" in log
    assert "left out are 2 of 85 files:" in log
    assert "red/03.png cannot be read: it is no image of JPEG" in log
    assert "tested on 19 validation images, exported files on 16 test images" in log
    kept = json.loads((run / "images.json").read_text())
    assert kept["image_size"] == 23
    assert set(kept["skipped"]) == {"train/red/03.png", "val/red/01.png"}


def test_epochs_are_compared_on_val_and_the_report_is_of_test(exported):
    report = json.loads((exported / "report.json").read_text())
    assert report["dataset"]["test_samples"] == 16
    for row in metrics(exported):  # a whole number of the 19 images
        assert row["test_top1"] * 19 == pytest.approx(round(row["test_top1"] * 19), abs=1e-6)
    rows = metrics(exported)
    best = 1 + max(range(2), key=lambda epoch: rows[epoch]["test_top1"])
    assert len(checkpoint(exported / "best.pt")["history"]) == best


def test_a_resumed_run_has_the_same_images_in_the_same_places(project, run, tmp_path, monkeypatch):
    """A bad file that is whole again changes nothing: the run knows what it left out."""
    moved = tmp_path / "photos"
    shutil.copytree(project / "photos", moved)
    options = ("--data-root", moved, "-o", tmp_path / "run")
    keep = Session.keep

    def and_stop(session, kept):
        keep(session, kept)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(Session, "keep", and_stop)
        fails("train", project / "recipe.toml", *options, code=130)
    assert len(metrics(tmp_path / "run")) == 1
    write(moved / "train/red/03.png", 3, 3)
    succeeds("train", "--resume", *options)
    assert_same_checkpoint(tmp_path / "run/last.pt", run / "last.pt")


def test_a_run_goes_on_with_no_other_images(project, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(project / "photos", tmp_path / "photos")
    write(tmp_path / "photos/train/red/more.png", 3, 99)
    before = content(tmp_path / "run")
    said = fails("train", "--resume", "-o", tmp_path / "run", "--data-root", tmp_path / "photos")
    assert "was trained on other images: it began with 85 files" in said
    assert content(tmp_path / "run") == before


def test_two_processes_train_what_one_does(project, run, tmp_path):
    train_in_two_processes(project / "recipe.toml", "--epochs", "1", "-o", tmp_path / "run")
    assert json.loads((tmp_path / "run/images.json").read_text()) == json.loads(
        (run / "images.json").read_text()
    )
    alone, together = metrics(run)[0], metrics(tmp_path / "run")[0]
    assert together["steps"] == alone["steps"] == 4
    assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-2)


def test_without_skipping_nothing_is_written(project, tmp_path):
    options = ("--set", "data.on_bad_file=error", "-o", tmp_path / "run")
    said = fails("train", project / "recipe.toml", *options)
    assert "2 of 85 files cannot be read:" in said
    header = fails("train", project / "recipe.toml", *options, "--scan", "header")
    assert "1 of 85 files cannot be read:" in header
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "section", [{}, {"resize": 30}, {"resize": 23}, {"resize": "whole", "interpolation": "bicubic"}]
)
def test_the_keys_of_data_that_a_file_stands_for(section):
    fit = fit_of(DataSection(dataset="folder", **section), 23)
    said = {
        **fit_metadata(3, fit),
        "qdeploy.normalisation": '{"mean": [0, 0, 0], "std": [1, 1, 1]}',
    }
    session = SimpleNamespace(metadata=said, input_shape=(1, 3, 23, 23), input_type="float32")
    keys = data_keys(session, Path("model.onnx"))
    assert keys["image_size"] == 23
    assert fit_of(DataSection(dataset="folder", **keys), 23) == fit


class TestPredict:
    def test_a_picture_becomes_the_very_input_of_the_test_side(self, project, exported):
        data = load_run(RunFolder(exported), "last", None, "cpu").data
        session = onnxruntime.InferenceSession(exported / "model.onnx")
        (taken,) = session.get_inputs()
        metadata = session.get_modelmeta().custom_metadata_map
        prepared = preprocessing_of(metadata, taken.shape, False, Path("model.onnx"))
        tested = torch.cat([images for images, _ in data.test.epoch(0)])
        paths = sorted((project / "photos/test").rglob("*.png"))
        assert len(paths) == len(tested) == 16
        for path, expected in zip(paths, tested, strict=True):
            found = prepared(read(path))
            assert found.dtype == np.float32
            assert found.tobytes() == expected.contiguous().numpy().tobytes()

    def test_it_says_what_the_logits_do(self, project, exported):
        folder, single = project / "photos/test", project / "photos/val/blue/00.png"
        printed = succeeds("predict", exported / "model.onnx", folder, single).splitlines()
        found = json.loads(succeeds("predict", exported / "model.onnx", folder, single, "--json"))
        data = load_run(RunFolder(exported), "last", None, "cpu").data
        session = onnxruntime.InferenceSession(exported / "model.onnx")
        tested = [image for images, _ in data.test.epoch(0) for image in images.numpy()]
        logits = np.concatenate([session.run(None, {"input": image[None]})[0] for image in tested])
        shares = torch.tensor(logits).double().softmax(1)
        assert [row["picture"] for row in found] == [
            *map(str, sorted(folder.rglob("*.png"))),
            str(single),
        ]
        for row, line, expected in zip(found, printed, shares, strict=False):
            top = expected.topk(3)
            assert [guess["name"] for guess in row["classes"]] == [CLASSES[i] for i in top.indices]
            values = [guess["share"] for guess in row["classes"]]
            assert values == pytest.approx(top.values.tolist(), abs=1e-6)
            words = "  ".join(f"{guess['name']} {guess['share']:.4f}" for guess in row["classes"])
            assert line == f"{row['picture']}  {words}"

    def test_pixels_go_into_a_file_that_takes_them(self, project, exported, tmp_path):
        copied = tmp_path / "run"
        shutil.copytree(exported, copied)
        options = ("--checkpoint", "best", "--input", "uint8", "-o", tmp_path / "pixels.onnx")
        succeeds("export", copied, *options)
        of_pixels = predict(tmp_path / "pixels.onnx", [project / "photos/test"])
        of_floats = predict(exported / "model.onnx", [project / "photos/test"])
        for one, other in zip(of_pixels, of_floats, strict=True):
            assert [guess.name for guess in one.classes] == [guess.name for guess in other.classes]
            shares = [guess.share for guess in other.classes]
            assert [guess.share for guess in one.classes] == pytest.approx(shares, abs=1e-5)

    def test_it_needs_no_torch(self, project, exported):
        code = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from qdeploy.cli import main
main(["predict", r"{exported / "model.onnx"}", r"{project / "photos/test/red/00.png"}"])
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "red/00.png  " in done.stdout

    def test_what_is_wrong_with_pictures_is_said_at_once(self, project, exported, tmp_path):
        missing = fails("predict", exported / "model.onnx", project / "photos/train", "gone.png")
        assert "red/03.png cannot be read: it is no image" in missing
        assert "gone.png cannot be read: it does not exist" in missing
        assert "holds no picture" in fails("predict", exported / "model.onnx", tmp_path)

    def test_the_benchmark_prepares_pictures_as_the_file_says(self, project, exported, tmp_path):
        photos = tmp_path / "photos"
        shutil.copytree(project / "photos", photos)
        for name in ("train/red/03.png", "val/red/01.png"):
            (photos / name).unlink()
        write(photos / "train/red/03.png", 3, 3)
        options = ("--data", "folder", "--data-root", photos, "--json")
        found = json.loads(succeeds("benchmark", exported / "model.onnx", *options))
        report = json.loads((exported / "report.json").read_text())
        assert found["accuracy"][0]["samples"] == 16
        assert found["accuracy"][0]["top1"] == report["accuracy"]["onnx"]["top1"]
