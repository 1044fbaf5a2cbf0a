"""What is drawn at random of a training image: its crop, its side, its colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from qdeploy.pictures.fit import Fit
from qdeploy.recipe import DataSection

# What data.augmentation stands for: crop_scale and flip, where the recipe does not give them.
PRESETS: dict[str, tuple[tuple[float, float] | None, bool]] = {
    "none": (None, False),
    "light": ((0.7, 1.0), True),
    "imagenet": ((0.08, 1.0), True),
}


@dataclass(frozen=True)
class Augmentation:
    """A random box, mirrored or not, in other colours.

    fit            what is done in place of a crop, and how all is resized
    crop_scale     least and largest share of the area in the box; None: no crop
    flip           half of the images are mirrored
    colour_jitter  brightness, contrast and saturation are multiplied by 1 - this to 1 + this
    """

    fit: Fit
    crop_scale: tuple[float, float] | None
    flip: bool
    colour_jitter: float

    def __call__(self, image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
        """An RGB image as RGB of size x size; `random` alone decides what is drawn."""
        if self.crop_scale is None:
            image = self.fit(image, size, size)
        else:
            box = random_box(image.width, image.height, self.crop_scale, random)
            image = image.resize((size, size), self.fit.resampling, box=box)
        if self.flip and random.random() < 0.5:
            image = ImageOps.mirror(image)
        return jittered(image, self.colour_jitter, random) if self.colour_jitter else image


def augmentation_of(section: DataSection, fit: Fit) -> Augmentation:
    """What [data] says of image files."""
    crop_scale, flip = PRESETS[section.augmentation]
    return Augmentation(
        fit,
        crop_scale if section.crop_scale is None else section.crop_scale,
        flip if section.flip is None else section.flip,
        section.colour_jitter,
    )


def random_box(
    width: int, height: int, scale: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a share of the area within `scale`, 3/4 to 4/3 as wide as high.

    Szegedy et al. 2014, section 6, where it is 8 to 100 %. After ten boxes that do not fit, it is the
    largest central box within these proportions.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(random.integers(0, width - box_width, endpoint=True))
            top = int(random.integers(0, height - box_height, endpoint=True))
            return left, top, left + box_width, top + box_height
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def jittered(image: Image.Image, most: float, random: np.random.Generator) -> Image.Image:
    """Brightness, then contrast, then saturation, each times a factor of 1 - most to 1 + most."""
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(random.uniform(1 - most, 1 + most))
    return image
