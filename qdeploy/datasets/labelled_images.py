"""What the readers of published files share: reading bytes, the result, the error for a damaged file."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qdeploy.errors import QdeployError

_GZIP_MAGIC = b"\x1f\x8b"


class LabelledImages(NamedTuple):
    """images: uint8 [N, C, H, W]; labels: int64 [N], each the index of a class."""

    images: np.ndarray
    labels: np.ndarray


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzip; its name does not matter.

    Raises QdeployError if it cannot be read or gzip's checksum finds it truncated or altered.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QdeployError(f"{path} cannot be read: {error.strerror}") from error
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path, f"its gzip stream is broken ({error})") from error


def check_labels(labels: np.ndarray, classes: int, path: Path) -> None:
    """Raises QdeployError unless all labels are in 0..classes-1."""
    if labels.max() >= classes:
        raise damaged(path, f"it holds the label {labels.max()}; allowed: 0..{classes - 1}")


def damaged(path: Path, problem: str) -> QdeployError:
    """The error for a file that cannot be what its name says."""
    return QdeployError(
        f"{path} is damaged: {problem}. Delete it and put an intact copy there, or fetch it"
        " with --download."
    )
