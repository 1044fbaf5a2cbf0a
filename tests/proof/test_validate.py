"""validate, as a user calls it: several outputs, another network's file, and what is printed."""

import json

import pytest
import torch
from exported_networks import calibrated
from networks import build, images
from sized_networks import converted, resized
from sized_networks import images as sized_images
from torch import nn

import qdeploy
from qdeploy import QdeployError


class Heads(nn.Module):
    """Two inputs, and outputs in a dictionary."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.far, self.near = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 3, 3)

    def forward(self, left, right):
        y = self.stem(left).relu() + self.stem(right).relu()
        return {"far": self.far(y), "near": self.near(y)}


@pytest.fixture
def exported(tmp_path):
    prepared = calibrated(build("residual"))
    return prepared, qdeploy.export(prepared, tmp_path / "model.onnx", images(2))


def test_a_file_is_proven_on_batches_of_ones_own(exported):
    prepared, file = exported
    found = qdeploy.validate(prepared, file, [images(5), images(3, seed=2)])
    assert found.exactness.samples == 8
    assert found.exactness.differing == 0
    assert found.exactness.compared > 0
    (logits,) = found.outputs
    assert (logits.name, logits.largest) == ("logits", 0.0)
    assert logits.size == pytest.approx(float(qdeploy.convert(prepared)(
        torch.cat([images(5), images(3, seed=2)])).abs().max()))  # fmt: skip
    assert str(found).splitlines()[1:] == [str(found.exactness), "logits: equal bit for bit"]
    assert json.loads(found.to_json())["exactness"]["samples"] == 8


def test_several_inputs_and_outputs(tmp_path):
    torch.manual_seed(0)
    pair = images(4), images(4, seed=2)
    prepared = qdeploy.prepare(Heads(), pair, "simqat")
    qdeploy.calibrate(prepared, [pair])
    file = qdeploy.export(prepared.eval(), tmp_path / "model.onnx", pair)
    found = qdeploy.validate(prepared, file, [pair])
    assert [output.name for output in found.outputs] == ["far", "near"]
    assert all(output.largest == 0 for output in found.outputs)
    assert found.exactness.differing == 0


def test_a_file_of_open_sizes_is_proven_on_three(tmp_path):
    integers = converted(resized)
    sizes = {"dynamic": ["height", "width"]}
    file = qdeploy.export(integers, tmp_path / "model.onnx", sized_images(), **sizes)
    found = qdeploy.validate(integers, file, [sized_images(), sized_images(18, 14)])
    assert found.sizes == ("16x16", "13x9", "21x25", "18x14")
    assert (found.exactness.samples, found.exactness.differing) == (8, 0)
    assert found.outputs[0].largest == 0
    assert "sizes: 16x16, 13x9, 21x25, 18x14" in str(found)


def test_the_file_of_other_weights_is_an_error(exported):
    other = calibrated(build("residual", seed=1))
    with pytest.raises(QdeployError, match="is not what this network exports to"):
        qdeploy.validate(other, exported[1], [images(2)])


def test_a_file_that_takes_pixels_is_an_error(exported, tmp_path):
    prepared, _ = exported
    file = qdeploy.export(
        prepared, tmp_path / "pixels.onnx", images(2), uint8_input=([0.5] * 3, [0.25] * 3)
    )
    with pytest.raises(QdeployError, match="uint8_input"):
        qdeploy.validate(prepared, file, [images(2)])


def test_no_batches_are_an_error(exported):
    with pytest.raises(QdeployError, match="no batches"):
        qdeploy.validate(*exported, [])


def test_a_network_that_is_not_prepared_is_an_error(exported):
    with pytest.raises(QdeployError, match="prepare"):
        qdeploy.validate(build("residual"), exported[1], [images(2)])
