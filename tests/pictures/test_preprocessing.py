"""What a file's metadata says of pictures: done as NumPy says, and refused where it says too little."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import Fit
from qdeploy.pictures.preprocessing import fit_metadata, preprocessing_of

FILE = Path("model.onnx")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)
NORMALISED = {"qdeploy.normalisation": '{"mean": [0.1, 0.5, 0.9], "std": [0.2, 0.3, 0.4]}'}
NOTED = {**fit_metadata(3, Fit(1.0)), **NORMALISED}


def test_floats_are_normalised_and_pixels_are_not():
    found = preprocessing_of(NOTED, ["batch", 3, 8, 8], False, FILE)(IMAGE)
    expected = (PIXELS / 255 - [0.1, 0.5, 0.9]) / [0.2, 0.3, 0.4]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    pixels = preprocessing_of(fit_metadata(3, Fit(1.0)), ["batch", 3, 8, 8], True, FILE)(IMAGE)
    np.testing.assert_array_equal(pixels[0], PIXELS.transpose(2, 0, 1))


def test_one_channel_is_grey():
    noted = fit_metadata(1, Fit(1.0))
    found = preprocessing_of(noted, ["batch", 1, 8, 8], True, FILE)(IMAGE)
    grey = PIXELS @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found[0, 0], grey, atol=0.51)


@pytest.mark.parametrize("crop", [1.0, 0.875, None, 224 / 257])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_fit_survives_the_file(crop, interpolation):
    fit = Fit(crop, interpolation)
    found = preprocessing_of({**fit_metadata(3, fit), **NORMALISED}, [1, 3, 5, 6], False, FILE)
    assert (found.fit, found.height, found.width, found.colours) == (fit, 5, 6, "RGB")


def without(*keys):
    return {key: value for key, value in NOTED.items() if key not in keys}


@pytest.mark.parametrize(
    ("noted", "shape", "message"),
    [
        ({}, [1, 3, 8, 8], "lacks qdeploy.colours, qdeploy.interpolation, qdeploy.normalisation"),
        (without("qdeploy.colours"), [1, 3, 8, 8], r"its metadata lacks qdeploy\.colours\."),
        (fit_metadata(3, Fit()), [1, 3, 8, 8], "lacks qdeploy.normalisation"),
        ({**NOTED, "qdeploy.crop": "2"}, [1, 3, 8, 8], r"nobody knows .*qdeploy\.crop = 2"),
        ({**NOTED, "qdeploy.crop": "half"}, [1, 3, 8, 8], "nobody knows"),
        ({**NOTED, "qdeploy.colours": '"BGR"'}, [1, 3, 8, 8], "nobody knows"),
        ({**NOTED, "qdeploy.interpolation": '"cubic"'}, [1, 3, 8, 8], "nobody knows"),
        ({**NOTED, "qdeploy.normalisation": "[]"}, [1, 3, 8, 8], "nobody knows"),
        (NOTED, [1, 1, 8, 8], "takes 1 channels, and its metadata has colours RGB with 3 means"),
        (NOTED, ["batch", 3, "height", None], "with a fixed number of channels, height and width"),
        (NOTED, ["batch", 10], "pictures can be given to"),
    ],
)
def test_a_file_that_does_not_say_how(noted, shape, message):
    with pytest.raises(QdeployError, match=message) as caught:
        preprocessing_of(noted, shape, False, FILE)
    assert str(caught.value).startswith("model.onnx ")


def test_a_normalisation_for_other_channels():
    noted = {**NOTED, "qdeploy.normalisation": json.dumps({"mean": [0.5], "std": [0.5]})}
    with pytest.raises(QdeployError, match=r"takes 3 channels, .* with 1 means and 1 deviations"):
        preprocessing_of(noted, [1, 3, 8, 8], False, FILE)
