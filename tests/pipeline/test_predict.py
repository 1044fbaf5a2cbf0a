"""qdeploy predict: what it makes of a file's numbers, and of files that are not for pictures."""

import numpy as np
import onnx
import pytest
from command_line import fails, succeeds
from PIL import Image

from qdeploy.pictures.fit import Fit
from qdeploy.pictures.preprocessing import fit_metadata
from qdeploy.pipeline.predict import best

CLASSES = '["red", "green", "blue"]'


def file_of(path, outputs="float[batch, 3] logits", **metadata):
    """A network whose logits are the sums of a picture's three colours, in a hundredth of a pixel."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 21]>
        g (uint8[batch, 3, 2, 2] input) => (OUTPUTS) <float hundredth = {0.01}> {
            values = Cast <to = 1> (input)
            axes = Constant <value_ints = [2, 3]> ()
            sums = ReduceSum <keepdims = 0> (values, axes)
            logits = Mul (sums, hundredth)
        }""".replace("OUTPUTS", outputs)
    )
    onnx.helper.set_model_props(model, {f"qdeploy.{key}": value for key, value in metadata.items()})
    onnx.save(model, path)
    return path


def noted():
    return {key.removeprefix("qdeploy."): value for key, value in fit_metadata(3, Fit()).items()}


def test_of_three_classes_the_best_alone(tmp_path):
    file = file_of(tmp_path / "x.onnx", classes=CLASSES, **noted())
    Image.new("RGB", (5, 7), (10, 0, 60)).save(tmp_path / "x.png")
    shares = np.exp([0.4, 0, 2.4])
    line = f"{tmp_path / 'x.png'}  blue {shares[2] / shares.sum():.4f}\n"
    assert succeeds("predict", file, tmp_path / "x.png") == line


def test_of_more_the_three_best_of_equals_the_first():
    found = best(np.float32([1, 3, 2, 3, -500]), "abcde")
    powers = np.exp([3.0, 3, 2, 1])
    assert [guess.name for guess in found] == ["b", "d", "c"]
    assert [guess.share for guess in found] == pytest.approx(list(powers[:3] / powers.sum()))


def test_large_logits_have_shares():
    assert best(np.float32([1e38, 0, -1e38]), "abc")[0].share == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "its metadata lacks qdeploy.colours, qdeploy.interpolation."),
        (noted(), "does not name its classes (metadata qdeploy.classes)"),
        (
            noted() | {"classes": '["one", "two"]'},
            "gives [1, 3] for one picture, and its metadata has 2",
        ),
    ],
)
def test_a_file_that_says_too_little(tmp_path, metadata, message):
    Image.new("RGB", (5, 7)).save(tmp_path / "x.png")
    assert message in fails("predict", file_of(tmp_path / "x.onnx", **metadata), tmp_path / "x.png")


def test_a_file_with_more_than_logits_is_not_judged_by_its_first_output(tmp_path):
    Image.new("RGB", (5, 7)).save(tmp_path / "x.png")
    both = "float[batch, 3] logits, float[batch, 3, 2, 2] values"
    file = file_of(tmp_path / "x.onnx", both, classes=CLASSES, **noted())
    said = fails("predict", file, tmp_path / "x.png")
    assert "gives [1, 3] and [1, 3, 2, 2] for one picture" in said


def test_what_is_no_model(tmp_path):
    Image.new("RGB", (5, 7)).save(tmp_path / "x.png")
    assert "is no file" in fails("predict", tmp_path / "gone.onnx", tmp_path / "x.png")
    assert "cannot load" in fails("predict", tmp_path / "x.png", tmp_path / "x.png")
