"""Test images: the centre crop against Pillow's plain resize, the whole image against NumPy's mean."""

import numpy as np
import pytest
from PIL import Image

from qdeploy.pictures.fit import Fit


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a pixel tells where it comes from."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (300, 640)])
@pytest.mark.parametrize("short", [224, 256, 300])
def test_the_centre_is_that_of_the_resized_image(size, short):
    image = gradient(*size)
    scale = short / min(size)
    resized = image.resize([round(side * scale) for side in size], Image.Resampling.BILINEAR)
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), float)
    found = Fit(224 / short)(image, 224, 224)
    np.testing.assert_allclose(np.asarray(found, float), expected, atol=2)


def test_the_whole_image_is_stretched():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 3), np.uint8)
    found = np.asarray(Fit(None)(Image.fromarray(pixels), 12, 40))
    np.testing.assert_array_equal(found, pixels)
    smooth = np.asarray(Fit(None)(gradient(400, 60), 10, 10), float)
    middles = 255 * (np.arange(10) + 0.5) / 10  # of the tenths, up to the edges of a pixel
    np.testing.assert_allclose(smooth[4, 1:-1, 0], middles[1:-1], atol=2)
    np.testing.assert_allclose(smooth[1:-1, 4, 1], middles[1:-1], atol=3)


def test_the_interpolation_is_the_one_that_is_named():
    image = Image.fromarray(np.array([[0, 255]], np.uint8))
    nearest = np.asarray(Fit(None, "nearest")(image, 1, 8))[0]
    assert nearest.tolist() == [0] * 4 + [255] * 4
    linear = np.asarray(Fit(None, "bilinear")(image, 1, 8), float)[0]
    np.testing.assert_allclose(linear, 255 * np.clip((np.arange(8) - 1.5) / 4, 0, 1), atol=1)
    # A cubic of a = -1/2 is not monotonous: it is below the line before the middle.
    cubic = np.asarray(Fit(None, "bicubic")(image, 1, 8), float)[0]
    assert (cubic[2:4] < linear[2:4]).all()


def test_an_image_of_one_row_has_a_centre():
    assert Fit()(gradient(5000, 1), 8, 8).size == (8, 8)
