"""A file is the old one or the complete new one."""

import errno
import os
import stat
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


def test_a_folder_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, Path()):
        with pytest.raises(QdeployError, match="it is a folder; give the name of a file"):
            write(folder, b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_who_may_read_a_file_stays_as_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, b"old")
    old.chmod(0o640)
    umask = os.umask(0o027)
    try:
        write(old, b"new")
        write(new, b"new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == 0o640, "a new file is as the umask says"


def test_a_link_goes_on_to_point_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    file, link = tmp_path / "store" / "file", tmp_path / "link"
    write(file, b"old")
    link.symlink_to(file)
    write(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path / "store") == ["file"]
