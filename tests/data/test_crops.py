"""ImageNet's crops against Pillow's plain resize and against their published limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qdeploy.data.crops import centre_crop, random_box, random_crop


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a pixel tells where it comes from."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (300, 640)])
def test_centre_crop_is_the_centre_of_the_resized_image(size):
    image = gradient(*size)
    scale = 256 / min(size)
    resized = image.resize([round(side * scale) for side in size], Image.Resampling.BILINEAR)
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), float)
    np.testing.assert_allclose(np.asarray(centre_crop(image, 224), float), expected, atol=2)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 10_000))
def test_random_box_lies_in_the_image(width, height, seed):
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_boxes_cover_the_published_areas_and_proportions():
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 400, random) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 400**2, width / height
    assert 0.078 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.35
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


def test_an_image_too_narrow_for_any_box_gives_its_centre():
    assert random_box(10, 1000, np.random.default_rng(0)) == (0, 493, 10, 506)
    assert random_box(1000, 9, np.random.default_rng(0)) == (494, 0, 506, 9)


def test_half_of_the_random_crops_are_mirrored():
    image, random = gradient(64, 64), np.random.default_rng(0)
    crops = [np.asarray(random_crop(image, 16, random), int) for _ in range(400)]
    assert {crop.shape for crop in crops} == {(16, 16, 3)}
    mirrored = sum(crop[:, 0, 0].mean() > crop[:, -1, 0].mean() for crop in crops)
    assert 160 < mirrored < 240
    assert all(crop[0, :, 1].mean() < crop[-1, :, 1].mean() for crop in crops)
