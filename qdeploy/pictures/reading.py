"""Opens image files, and nothing else that may lie there under the name of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from qdeploy.errors import QdeployError
from qdeploy.pictures.modes import check_mode, in_rgb

# Not EPS and its like, which Pillow hands to other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# Beyond this Pillow warns of a bomb: a small file may unpack to any number. In RGB it is 268 MB.
MOST_PIXELS = 89_478_485


def read(path: Path) -> Image.Image:
    """The image in RGB, upright as its EXIF says; of an animation the first picture.

    Errors: QdeployError that begins with the path, as `size_of` has them, and for a file that
    cannot be decoded to its end.
    """
    with _opened(path) as image:
        return in_rgb(ImageOps.exif_transpose(image))


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as the header says; no pixel is decoded.

    Errors: QdeployError that begins with the path, for what is no file (a pipe, a device), no image
    of FORMATS, of more than MOST_PIXELS, or of a mode that is not read.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if not path.is_file():
            raise QdeployError("it is no file" if path.exists() else "it does not exist")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise QdeployError(
                    f"it has {width} x {height} pixels; allowed are {MOST_PIXELS:,} in all"
                )
            check_mode(image)
            yield image
    except UnidentifiedImageError:
        raise _unreadable(path, f"it is no image of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders share no exception
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _unreadable(path: Path, why: str) -> QdeployError:
    return QdeployError(f"{path} cannot be read: {why.rstrip('.')}. Replace the file or delete it")
