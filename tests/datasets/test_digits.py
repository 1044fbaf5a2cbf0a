"""The bundled digits against scikit-learn's own arrays and a bilinear formula in NumPy."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from qdeploy.datasets.digits import DATASET, read_digits
from qdeploy.errors import QdeployError


@pytest.fixture(scope="module")
def digits():
    return read_digits()


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Pixel centres at half integers, edges repeated; `image` is square."""
    position = (np.arange(size) + 0.5) * len(image) / size - 0.5
    weights = np.maximum(0, 1 - abs(position.clip(0, len(image) - 1)[:, None] - np.arange(8)))
    return weights @ image @ weights.T


def test_every_scan_is_in_one_of_the_splits_enlarged(digits):
    scans, labels = load_digits(return_X_y=True)
    expected = np.array([bilinear(scan.reshape(8, 8) * 255 / 16, 28).ravel() for scan in scans])
    images = np.concatenate([split.images for split in digits]).reshape(-1, 28 * 28).astype(float)
    nearest = ((expected**2).sum(1) - 2 * images @ expected.T).argmin(1)
    assert sorted(nearest) == list(range(1797))
    np.testing.assert_allclose(images, expected[nearest], atol=0.5001)
    read_labels = np.concatenate([split.labels for split in digits])
    np.testing.assert_array_equal(read_labels, labels[nearest])


def test_a_fifth_of_each_class_is_held_out(digits):
    train, test = (np.bincount(split.labels, minlength=10) for split in digits)
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.006)
    assert len(digits[0].labels) == 1437
    assert len(digits[1].labels) == 360


def test_the_split_never_changes(digits):
    train, test = digits
    assert train.labels[:12].tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8, 3, 5]
    assert test.labels[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def test_published_normalisation_is_that_of_the_training_pixels(digits):
    pixels = digits[0].images / 255
    assert DATASET.mean == (pytest.approx(pixels.mean(), abs=5e-5),)
    assert DATASET.std == (pytest.approx(pixels.std(), abs=5e-5),)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # importing it raises ImportError
    with pytest.raises(QdeployError, match="pip install scikit-learn"):
        read_digits()
