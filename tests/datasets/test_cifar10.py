"""The CIFAR-10 reader against records written byte by byte, whole and broken."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import CIFAR_NAMES, cifar_archive, cifar_files, random_images, write_cifar_folder

from qdeploy.datasets.cifar10 import read_cifar10
from qdeploy.errors import QdeployError

FILES = cifar_files(records=2)
ARCHIVE = cifar_archive(FILES)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return tmp_path_factory.mktemp("cifar") / "cifar-10-binary.tar.gz"


@pytest.fixture
def folder(tmp_path):
    return write_cifar_folder(tmp_path / "cifar-10-batches-bin", FILES)


def assert_is_what_was_written(train, test):
    parts = [random_images(2, 3, 32, 32, seed=seed) for seed in range(6)]
    np.testing.assert_array_equal(train.images, np.concatenate([part[0] for part in parts[:5]]))
    np.testing.assert_array_equal(train.labels, np.concatenate([part[1] for part in parts[:5]]))
    np.testing.assert_array_equal(test.images, parts[5][0])
    np.testing.assert_array_equal(test.labels, parts[5][1])


def test_folder(folder):
    assert_is_what_was_written(*read_cifar10(folder))


def test_archive(archive):
    archive.write_bytes(ARCHIVE)
    assert_is_what_was_written(*read_cifar10(archive))


def test_planes_are_red_green_blue_and_rows_run_left_to_right(tmp_path):
    record = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1023 + bytes([4])
    _, test = read_cifar10(write_cifar_folder(tmp_path / "x", dict.fromkeys(CIFAR_NAMES, record)))
    assert test.labels.tolist() == [7]
    assert test.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert test.images[0, 2, 31, 31] == 4


@given(name=st.sampled_from(CIFAR_NAMES), length=st.integers(0, 2 * 3073 - 1))
@settings(max_examples=30)
def test_truncated_file_is_an_error(tmp_path_factory, name, length):
    files = FILES | {name: FILES[name][:length]}
    folder = write_cifar_folder(tmp_path_factory.mktemp("cut") / "bin", files)
    with pytest.raises(QdeployError, match=f"{folder}.*{name}"):
        read_cifar10(folder)


@given(length=st.integers(0, len(ARCHIVE) - 1))
@settings(max_examples=50)
def test_truncated_archive_is_an_error(archive, length):
    archive.write_bytes(ARCHIVE[:length])
    with pytest.raises(QdeployError, match=str(archive)):
        read_cifar10(archive)


@given(position=st.integers(0, len(ARCHIVE) - 1), flipped=st.integers(1, 255))
@settings(max_examples=50)
def test_changed_archive_is_an_error_or_harmless(archive, position, flipped):
    content = bytearray(ARCHIVE)
    content[position] ^= flipped
    archive.write_bytes(content)
    try:
        read = read_cifar10(archive)
    except QdeployError:
        return
    assert_is_what_was_written(*read)


def test_label_out_of_range(folder):
    record = bytes([11]) + bytes(3072)
    (folder / "data_batch_3.bin").write_bytes(record + record)
    with pytest.raises(QdeployError, match=r"data_batch_3.bin is damaged: .*label 11; .*0\.\.9"):
        read_cifar10(folder)


def test_missing_files_are_named(folder):
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(QdeployError, match=r"lacks data_batch_2\.bin, test_batch\.bin"):
        read_cifar10(folder)


def test_archive_of_something_else(tmp_path):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        members.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    with pytest.raises(QdeployError, match=r"no tar archive of CIFAR-10.*data_batch_1"):
        read_cifar10(archive)
