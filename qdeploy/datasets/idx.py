"""The idx format of MNIST and of the data sets that copy it.

A big-endian header, then unsigned bytes: magic 0x0000080D with D the number of dimensions, and
the D sizes as uint32 (http://yann.lecun.com/exdb/mnist/).
"""

import math
from pathlib import Path

import numpy as np

from qdeploy.datasets.dataset import PublishedFile
from qdeploy.datasets.labelled_images import LabelledImages, check_labels, damaged, read_bytes

_UNSIGNED_BYTES = 0x0800
_CLASSES = 10
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_files(*sha256: str) -> tuple[PublishedFile, ...]:
    """The four files of MNIST or a copy of it, by their checksums, in the order of `read_mnist`."""
    checksums = zip(_FILES, sha256, strict=True)
    return tuple(PublishedFile(f"{name}.gz", name, checksum) for name, checksum in checksums)


def read_mnist(
    train_images: Path, train_labels: Path, test_images: Path, test_labels: Path
) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set from four idx files, gzipped or not.

    Raises QdeployError naming the file that is damaged or does not belong to the others.
    """
    train = _read_pair(train_images, train_labels)
    test = _read_pair(test_images, test_labels)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise damaged(
            test_images,
            f"its images are {_size(test)} pixels, those of {train_images} are {_size(train)}",
        )
    return train, test


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an idx file, gzipped or not, which must have `dimensions` dimensions.

    Raises QdeployError for another magic number, for more or fewer bytes than the header
    promises, and for an array without elements.
    """
    content = read_bytes(path)
    header = 4 * (1 + dimensions)
    if len(content) < header:
        raise damaged(path, f"it has {len(content)} bytes, its header alone needs {header}")
    magic, *shape = np.frombuffer(content[:header], ">u4").tolist()
    if magic != _UNSIGNED_BYTES + dimensions:
        expected = _UNSIGNED_BYTES + dimensions
        raise damaged(path, f"its magic number is 0x{magic:08x}, expected 0x{expected:08x}")
    promised, found = math.prod(shape), len(content) - header
    if found != promised or not promised:
        raise damaged(path, f"its header promises {shape} bytes of data, it holds {found} bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_pair(images_path: Path, labels_path: Path) -> LabelledImages:
    images = read_idx(images_path, dimensions=3)
    labels = read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise damaged(
            labels_path, f"it has {len(labels)} labels for {len(images)} images of {images_path}"
        )
    check_labels(labels, _CLASSES, labels_path)
    return LabelledImages(images[:, np.newaxis], labels.astype(np.int64))


def _size(images: LabelledImages) -> str:
    return "x".join(map(str, images.images.shape[2:]))
