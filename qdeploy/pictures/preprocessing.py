"""From a picture to the input of an exported file, as the file's metadata says it was done in testing.

    qdeploy.colours         "RGB", or "L" for one channel of grey
    qdeploy.crop            share of the short side that the centre takes, 1 if absent; or "whole", stretched
    qdeploy.interpolation   "bilinear", or another of Pillow's
    qdeploy.normalisation   {"mean": [...], "std": [...]} per channel, of pixels scaled to 0..1

Each is JSON. The input itself says its height and width, and uint8 where the file normalises pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, Field, PositiveFloat

from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import Fit, Interpolation

Floats = npt.NDArray[np.float32]
Values = TypeVar("Values", bound=Any)  # of a NumPy array or a torch tensor

COLOURS = {3: "RGB", 1: "L"}  # by the number of channels
NEEDED = ("qdeploy.colours", "qdeploy.interpolation", "qdeploy.normalisation")
WHOLE = "whole"


def in_pixels(mean: Sequence[float], std: Sequence[float]) -> tuple[Floats, Floats]:
    """Mean and deviation per channel of pixels 0..255, from those of pixels scaled to 0..1."""
    offset, divisor = (np.float32(255) * np.asarray(values, np.float32) for values in (mean, std))
    return offset, divisor


def normalised(pixels: Values, offset: Values, divisor: Values) -> Values:
    """float32 pixels of 0..255; offset and divisor are those of `in_pixels`, in a shape that fits."""
    return (pixels - offset) / divisor


def planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 [C, H, W]."""
    return np.array(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), order="C")


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture.

    height, width   of the input
    colours         "RGB" or "L"
    fit             how the picture gets that size
    normalisation   mean and std per channel, of pixels scaled to 0..1; None where pixels go in
    """

    height: int
    width: int
    colours: str
    fit: Fit
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None

    def __call__(self, image: Image.Image) -> npt.NDArray[Any]:
        """An RGB image as [1, C, H, W]: float32, or uint8 without a normalisation."""
        pixels = planes(self.fit(image.convert(self.colours), self.height, self.width))[None]
        if self.normalisation is None:
            return pixels
        offset, divisor = (part.reshape(-1, 1, 1) for part in in_pixels(*self.normalisation))
        return normalised(pixels.astype(np.float32), offset, divisor)


def fit_metadata(channels: int, fit: Fit) -> dict[str, str]:
    """The entries of a file for images of so many channels; without colours if that is not 1 or 3."""
    found: dict[str, object] = {"interpolation": fit.interpolation}
    if channels in COLOURS:
        found["colours"] = COLOURS[channels]
    if fit.crop != 1:
        found["crop"] = WHOLE if fit.crop is None else fit.crop
    return {f"qdeploy.{key}": json.dumps(value) for key, value in found.items()}


def preprocessing_of(
    metadata: Mapping[str, str], shape: Sequence[int | str | None], pixels: bool, file: Path
) -> Preprocessing:
    """What the metadata of `file` says is done to a picture.

    shape    of its input, [batch, C, H, W]; an open axis is a name or None
    pixels   whether the input is uint8

    Errors: QdeployError for entries that are missing or make no sense, and for another input.
    """
    noted = _noted(metadata, pixels, file)
    channels, height, width = _size(shape, file)
    mean, std = noted.normalisation.mean, noted.normalisation.std
    if not (
        COLOURS.get(channels) == noted.colours and (pixels or len(mean) == len(std) == channels)
    ):
        raise QdeployError(
            f"{file} takes {channels} channels, and its metadata has colours {noted.colours} with "
            f"{len(mean)} means and {len(std)} deviations; export it again"
        )
    crop = noted.crop if isinstance(noted.crop, float) else None
    fit = Fit(crop, noted.interpolation)
    return Preprocessing(height, width, noted.colours, fit, None if pixels else (mean, std))


class _Normalisation(BaseModel):
    mean: tuple[float, ...] = ()
    std: tuple[PositiveFloat, ...] = ()


class _Noted(BaseModel):
    """The entries, without `qdeploy.` in their names."""

    colours: Literal["RGB", "L"]
    interpolation: Interpolation
    crop: Literal["whole"] | Annotated[float, Field(gt=0, le=1)] = 1.0
    normalisation: _Normalisation = _Normalisation()


def _noted(metadata: Mapping[str, str], pixels: bool, file: Path) -> _Noted:
    needed = NEEDED[:-1] if pixels else NEEDED
    missing = [key for key in needed if key not in metadata]
    if missing:
        raise QdeployError(
            f"{file} does not say how a picture becomes its input: its metadata lacks {', '.join(missing)}. "
            "Files that `qdeploy export` writes have them, unless a function of your own gave the data: how "
            "that makes inputs of pictures, only it knows. docs/serving.md says what such files must note"
        )
    keys = [f"qdeploy.{name}" for name in _Noted.model_fields]
    given = {key: metadata[key] for key in keys if key in metadata}
    try:
        table = {key.removeprefix("qdeploy."): json.loads(text) for key, text in given.items()}
        return _Noted.model_validate(table)
    except ValueError as error:  # of JSON, or pydantic's
        said = ", ".join(f"{key} = {text}" for key, text in given.items())
        raise QdeployError(
            f"{file} says what nobody knows how to do to a picture ({said}); docs/serving.md says what "
            "these entries may be"
        ) from error


def _size(shape: Sequence[int | str | None], file: Path) -> tuple[int, int, int]:
    """Channels, height and width."""
    if len(shape) == 4:
        _, channels, height, width = shape
        if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
            return channels, height, width
    raise QdeployError(
        f"{file} takes {list(shape)}; pictures can be given to [batch, C, H, W] with a fixed number of "
        "channels, height and width"
    )
