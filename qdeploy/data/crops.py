"""The crops that ImageNet networks are trained and tested with."""

import math

import numpy as np
from PIL import Image, ImageOps

CENTRE = 224 / 256  # of the short side, for testing


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The crop for testing: the short side resized to size * 256/224, then the size x size centre.

    Done in one resampling of the centre, bilinear with antialiasing.
    """
    border = (1 - CENTRE) / 2
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed=border)


def random_crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """The crop for training: a random box, resized to size x size; half of them are mirrored."""
    box = random_box(image.width, image.height, random)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return ImageOps.mirror(crop) if random.random() < 0.5 else crop


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of 8 to 100 % of the area, 3/4 to 4/3 as wide as high.

    Szegedy et al. 2014, section 6. After ten boxes that do not fit, it is the largest
    central box within these proportions.
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(random.integers(0, width - box_width, endpoint=True))
            top = int(random.integers(0, height - box_height, endpoint=True))
            return left, top, left + box_width, top + box_height
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
