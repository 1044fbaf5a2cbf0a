"""A file is the old one or the complete new one."""

import errno
import os
from pathlib import Path

import pytest

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write


def write(path: Path, *parts: bytes | BaseException) -> None:
    with atomic_write(path) as file:
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            file.write(part)


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    write(path, b"ne", b"w")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()], ids=repr)
def test_the_old_file_stays_if_writing_stops(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    with pytest.raises(type(error)):
        write(path, b"ne", error)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(QdeployError, match=rf"cannot write {path}: No space left .*; free space"):
        write(path, b"ne", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(QdeployError, match=rf"cannot write {path}: No such file"):
        write(path, b"new")
