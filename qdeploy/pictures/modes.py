"""Every mode of Pillow's images as RGB, or a sentence that says why not.

- Grey, palettes, CMYK, YCbCr and HSV are converted as Pillow does.
- What is transparent is laid on white, as a page shows it.
- 16-bit grey is scaled: 65535 is white.
- Floats are scaled: 1 is white. Values outside of 0..1 have no known white, and 32-bit integers neither.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from qdeploy.errors import QdeployError

PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
SIXTEEN_BITS_IN_32 = {"PNG", "PPM"}  # formats whose images of mode I have values of 0..65535
AS_PNG = "save the image as PNG with 8 or 16 bits"


def check_mode(image: Image.Image) -> None:
    """Looks at the header alone. Errors: QdeployError for a mode without a known black and white."""
    if image.mode in PLAIN | TRANSPARENT | SIXTEEN_BITS | {"F"}:
        return
    if image.mode != "I":
        raise QdeployError(f"its mode is {image.mode}, which has no conversion to RGB; {AS_PNG}")
    if image.format not in SIXTEEN_BITS_IN_32:
        raise QdeployError(
            f"its pixels are 32-bit integers, and nothing says which of them is white; {AS_PNG}"
        )


def in_rgb(image: Image.Image) -> Image.Image:
    """An image of a mode that check_mode lets pass in RGB. Errors: QdeployError for floats not in 0..1."""
    if image.mode in SIXTEEN_BITS | {"I"}:
        return _grey((np.asarray(image).astype(np.int64) + 128) // 257)
    if image.mode == "F":
        return _grey(np.rint(255 * _from_0_to_1(np.asarray(image))))
    if image.mode in TRANSPARENT or image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def _grey(levels: npt.NDArray[np.generic]) -> Image.Image:
    """Levels [H, W] of 0..255."""
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _from_0_to_1(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lowest, highest = values.min(), values.max()
    if lowest >= 0 and highest <= 1:  # false for NaN as well
        return values
    raise QdeployError(
        f"its pixels are floats of {lowest:g} to {highest:g}; allowed: 0 to 1, where 1 is white. Scale "
        f"them, or {AS_PNG}"
    )


def _on_white(image: Image.Image) -> Image.Image:
    # Premultiplied colours are divided by their alpha first.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
    colours = image.convert(straight).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")
