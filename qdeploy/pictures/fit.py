"""How a picture gets the size of a network's input, where nothing is drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

CENTRE = 224 / 256  # of the short side, as ImageNet's networks are tested

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Fit:
    """The centre of the input's proportions, or the whole picture, resized in one step with antialiasing.

    crop            share of the short side (above 0, up to 1) that the centre takes; None: the whole
                    picture, stretched to the input's proportions
    interpolation   of Pillow's resampling
    """

    crop: float | None = CENTRE
    interpolation: Interpolation = "bilinear"

    def __call__(self, image: Image.Image, height: int, width: int) -> Image.Image:
        if self.crop is None:
            return image.resize((width, height), self.resampling)
        border = (1 - self.crop) / 2
        return ImageOps.fit(image, (width, height), self.resampling, bleed=border)

    @property
    def resampling(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]
