"""Writes files whole: whatever happens meanwhile, the file is the old one or the complete new one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qdeploy.errors import QdeployError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write to; it replaces `path` if the block ends without an error.

    The bytes go to `<path>.tmp` in the same folder and reach the disk before the name changes. Who may
    read and write a file stays as it was, and a link goes on to point to the file that is written.
    Raises QdeployError, naming the path and the reason, if the file cannot be written.
    """
    if path.is_dir():
        raise QdeployError(f"cannot write {path}: it is a folder; give the name of a file")
    place = path.resolve() if path.is_symlink() else path
    temporary = temporary_path(place)
    try:
        with temporary.open("wb") as file:
            if place.exists():
                shutil.copymode(place, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        raise QdeployError(
            f"cannot write {path}: {error.strerror or error}; free space or permissions there, "
            "or choose another output folder"
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def temporary_path(path: Path) -> Path:
    """Where the bytes of a file are until it is complete."""
    return path.with_name(path.name + ".tmp")
