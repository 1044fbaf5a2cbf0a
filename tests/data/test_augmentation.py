"""What is drawn of training images: boxes against their published limits, colours against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from published import random_images

from qdeploy.data.augmentation import Augmentation, augmentation_of, jittered, random_box
from qdeploy.pictures.fit import Fit
from qdeploy.recipe import DataSection

IMAGENET = (0.08, 1.0)
CROPS = Augmentation(Fit(), IMAGENET, flip=True, colour_jitter=0.0)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a pixel tells where it comes from."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 10_000))
def test_random_box_lies_in_the_image(width, height, seed):
    left, top, right, bottom = random_box(width, height, IMAGENET, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_boxes_cover_the_published_areas_and_proportions():
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 400, IMAGENET, random) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 400**2, width / height
    assert 0.078 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.35
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


def test_another_scale_is_that_of_the_areas():
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 400, (0.3, 0.5), random) for _ in range(500)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 400**2
    assert (area.min(), area.max()) == (pytest.approx(0.3, abs=0.01), pytest.approx(0.5, abs=0.01))


def test_an_image_too_narrow_for_any_box_gives_its_centre():
    assert random_box(10, 1000, IMAGENET, np.random.default_rng(0)) == (0, 493, 10, 506)
    assert random_box(1000, 9, IMAGENET, np.random.default_rng(0)) == (494, 0, 506, 9)


def test_half_of_the_random_crops_are_mirrored():
    image, random = gradient(64, 64), np.random.default_rng(0)
    crops = [np.asarray(CROPS(image, 16, random), int) for _ in range(400)]
    assert {crop.shape for crop in crops} == {(16, 16, 3)}
    mirrored = sum(crop[:, 0, 0].mean() > crop[:, -1, 0].mean() for crop in crops)
    assert 160 < mirrored < 240
    assert all(crop[0, :, 1].mean() < crop[-1, :, 1].mean() for crop in crops)


def test_without_anything_random_a_training_image_is_a_test_image():
    fit, image = Fit(0.5, "bicubic"), gradient(50, 40)
    plain = Augmentation(fit, None, flip=False, colour_jitter=0.0)
    for seed in range(5):
        found = plain(image, 16, np.random.default_rng(seed))
        assert found.tobytes() == fit(image, 16, 16).tobytes()


@given(most=st.floats(0.05, 0.4), seed=st.integers(0, 1000))
def test_colours_are_those_of_the_formulas(most, seed):
    """Each step mixes with black, with the mean grey and with each pixel's own grey; rounded to bytes."""
    pixels = random_images(1, 6, 5, 3, seed=seed)[0][0]
    found = jittered(Image.fromarray(pixels), most, np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    weights, values = np.array([0.299, 0.587, 0.114]), pixels.astype(float)
    for kind in ("brightness", "contrast", "saturation"):
        grey = {
            "brightness": 0.0,
            "contrast": np.round((values @ weights).mean()),
            "saturation": (values @ weights)[..., None],
        }[kind]
        factor = random.uniform(1 - most, 1 + most)
        values = np.floor(np.clip(grey + factor * (values - grey), 0, 255))
    # A step in which float32 rounds otherwise is enlarged twice.
    np.testing.assert_allclose(np.asarray(found, float), values, atol=3)


def section(**given) -> DataSection:
    return DataSection(dataset="folder", **given)


@pytest.mark.parametrize(
    ("given", "scale", "flip"),
    [
        ({}, (0.08, 1), True),
        ({"augmentation": "imagenet", "flip": False}, (0.08, 1), False),
        ({"augmentation": "light"}, (0.7, 1), True),
        ({"augmentation": "light", "crop_scale": [0.5, 0.9]}, (0.5, 0.9), True),
        ({"augmentation": "none"}, None, False),
        ({"augmentation": "none", "flip": True, "crop_scale": [0.2, 0.2]}, (0.2, 0.2), True),
    ],
)
def test_what_the_recipe_does_not_give_is_that_of_its_augmentation(given, scale, flip):
    found = augmentation_of(section(colour_jitter=0.25, **given), Fit(None))
    assert found == Augmentation(Fit(None), scale, flip, 0.25)
