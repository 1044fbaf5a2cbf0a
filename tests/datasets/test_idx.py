"""The idx reader against files written by struct, whole and broken."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from published import idx_images, idx_labels, random_images, write_mnist

from qdeploy.datasets.idx import read_idx, read_mnist
from qdeploy.errors import QdeployError


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("idx") / "images"


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=3, max_dims=3)), st.booleans())
def test_reads_back_what_was_written(file, images, zipped):
    content = idx_images(images)
    file.write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(read_idx(file, dimensions=3), images)


@given(data=st.data(), zipped=st.booleans())
def test_truncated_anywhere_is_an_error_that_names_the_file(file, data, zipped):
    content = idx_images(random_images(4, 5, 6)[0])
    content = gzip.compress(content) if zipped else content
    length = data.draw(st.integers(0, len(content) - 1))
    file.write_bytes(content[:length])
    with pytest.raises(QdeployError, match=str(file)):
        read_idx(file, dimensions=3)


@given(position=st.integers(0, 15), flipped=st.integers(1, 255))
def test_any_other_header_is_an_error(file, position, flipped):
    content = bytearray(idx_images(random_images(4, 5, 6)[0]))
    content[position] ^= flipped
    file.write_bytes(content)
    with pytest.raises(QdeployError, match=str(file)):
        read_idx(file, dimensions=3)


@given(data=st.data(), flipped=st.integers(1, 255))
def test_a_byte_changed_in_gzip_is_an_error_or_harmless(file, data, flipped):
    images = random_images(4, 5, 6)[0]
    content = bytearray(gzip.compress(idx_images(images)))
    content[data.draw(st.integers(0, len(content) - 1))] ^= flipped
    file.write_bytes(content)
    try:
        read = read_idx(file, dimensions=3)
    except QdeployError:
        return
    np.testing.assert_array_equal(read, images)


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_has_one_channel_and_whole_number_labels(tmp_path, zipped):
    written = write_mnist(tmp_path, zipped)
    for read, (images, labels) in zip(
        read_mnist(*mnist_paths(tmp_path, zipped)), written, strict=True
    ):
        np.testing.assert_array_equal(read.images, images.reshape(-1, 1, 28, 28))
        np.testing.assert_array_equal(read.labels, labels)
        assert read.labels.dtype == np.int64


def test_label_out_of_range(tmp_path):
    write_mnist(tmp_path, zipped=False)
    paths = mnist_paths(tmp_path, zipped=False)
    paths[3].write_bytes(idx_labels(np.array([0, 1, 2, 3, 10])))
    with pytest.raises(
        QdeployError, match=r"t10k-labels-idx1-ubyte is damaged: .*label 10; .*0\.\.9"
    ):
        read_mnist(*paths)


def test_more_labels_than_images(tmp_path):
    write_mnist(tmp_path, zipped=False)
    paths = mnist_paths(tmp_path, zipped=False)
    paths[1].write_bytes(idx_labels(np.zeros(13, int)))
    with pytest.raises(QdeployError, match=r"train-labels.* 13 labels for 12 images"):
        read_mnist(*paths)


def test_test_images_of_another_size(tmp_path):
    write_mnist(tmp_path, zipped=False)
    paths = mnist_paths(tmp_path, zipped=False)
    paths[2].write_bytes(idx_images(random_images(5, 14, 56)[0]))
    with pytest.raises(QdeployError, match=r"t10k-images.* 14x56 pixels, .* 28x28"):
        read_mnist(*paths)


def test_labels_in_the_place_of_images(tmp_path):
    write_mnist(tmp_path, zipped=False)
    paths = mnist_paths(tmp_path, zipped=False)
    with pytest.raises(QdeployError, match=r"train-labels.*0x00000801, expected 0x00000803"):
        read_mnist(paths[1], paths[0], paths[2], paths[3])


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(QdeployError, match=f"{tmp_path} cannot be read: Is a directory"):
        read_idx(tmp_path, dimensions=3)


def mnist_paths(folder: Path, zipped: bool) -> list[Path]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return [folder / f"{name}-ubyte{'.gz' if zipped else ''}" for name in names]
