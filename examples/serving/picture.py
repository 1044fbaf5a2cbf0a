"""What the Python examples share: a picture as the network takes it, and its class in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps


def batch_of(
    picture: str, size: Sequence[int], dtype: str, metadata: Mapping[str, str]
) -> np.ndarray:
    """One picture [1, C, H, W] of size (C, H, W): pixels for a uint8 input, for a float32 one normalised."""
    channels, height, width = size
    image = ImageOps.exif_transpose(Image.open(picture)).convert("L" if channels == 1 else "RGB")
    crop = json.loads(metadata.get("qdeploy.crop", "1"))
    interpolation = json.loads(metadata.get("qdeploy.interpolation", '"bilinear"'))
    resampling = Image.Resampling[interpolation.upper()]
    if crop == "whole":
        image = image.resize((width, height), resampling)
    else:
        image = ImageOps.fit(image, (width, height), resampling, bleed=(1 - crop) / 2)
    pixels = np.asarray(image).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    if dtype == "uint8":
        return pixels.copy()
    normalisation = json.loads(metadata["qdeploy.normalisation"])
    mean, std = (np.float32(normalisation[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    return (pixels - 255 * mean) / (255 * std)


def in_words(logits: np.ndarray, metadata: Mapping[str, str]) -> str:
    """The class of the largest of the logits [classes], and its share of their softmax."""
    shares = np.exp(logits - logits.max())
    best = json.loads(metadata["qdeploy.classes"])[logits.argmax()]
    return f"{best} {shares.max() / shares.sum():.4f}"
