"""Batches under a regime: against the plain batches of each phase, and Pillow's resizing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from published import random_images

from qdeploy.data.batches import ArrayBatches, Normalisation, resize
from qdeploy.data.decoding import FolderBatches
from qdeploy.datasets.folder import ImageFolder
from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.recipe import DataPhase, DataSection

IMAGES = LabelledImages(*random_images(23, 1, 8, 8))
UNCHANGED = Normalisation([0.0], [1 / 255], "cpu")
SECTION = DataSection(
    dataset="mnist",
    batch_size=4,
    regime=(
        DataPhase(epoch=1, batch_size=8, image_size=6),
        DataPhase(step=10, pad_crop=2),  # epoch 0 has 6 steps, epochs 1 and 2 have 3
        DataPhase(epoch=4, image_size=12, flip=True),
    ),
)


def plain(batch_size, **changes):
    section = DataSection(dataset="mnist", batch_size=batch_size, **changes)
    return ArrayBatches(IMAGES, section, UNCHANGED, seed=5)


EXPECTED = [
    plain(4),
    plain(8, image_size=6),
    plain(8, image_size=6),  # starts at step 9, and step 10 lies within it
    plain(8, pad_crop=2, image_size=6),
    plain(8, pad_crop=2, image_size=12, flip=True),
]


@given(order=st.permutations(range(5)))
def test_each_epoch_is_that_of_its_phase_in_whatever_order(order):
    phased = plain(99, pad_crop=1).under(SECTION)
    for index in order:
        for found, expected in zip(phased.epoch(index), EXPECTED[index].epoch(index), strict=True):
            assert all(map(torch.equal, found, expected))
    assert [phased.steps_before(index) for index in range(6)] == [0, 6, 9, 12, 15, 18]
    assert phased.samples == 23


def test_the_images_are_on_the_device_once():
    start = plain(4)
    other = start.under(SECTION.at(4, 15))
    assert other._images.data_ptr() == start._images.data_ptr()
    assert [len(labels) for _, labels in start.epoch(0)] == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("size", [3, 7, 8, 13, 20])
def test_resizing_is_that_of_pillow(size):
    pixels = IMAGES.images[:4].astype(np.float32)
    found = resize(torch.from_numpy(pixels), size)
    for image, expected in zip(found, pixels, strict=True):
        resized = Image.fromarray(expected[0]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(image[0], np.asarray(resized), atol=1e-3)


def test_image_files_are_decoded_at_the_size_of_the_phase(tmp_path):
    for number, pixels in enumerate(random_images(6, 16, 16, 3)[0]):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    normalise = Normalisation([0.0] * 3, [1 / 255] * 3, "cpu")

    def files(image_size, batch_size, regime=()):
        section = DataSection(
            dataset="folder",
            image_size=image_size,
            batch_size=batch_size,
            workers=0,
            regime=regime,
        )
        return FolderBatches(ImageFolder(tmp_path), section, normalise, seed=7)

    regime = (DataPhase(epoch=1, image_size=9, batch_size=2), DataPhase(epoch=2, batch_size=3))
    phased = files(12, 4, regime)
    for index, expected in enumerate([files(12, 4), files(9, 2), files(9, 3)]):
        for found, same in zip(phased.epoch(index), expected.epoch(index), strict=True):
            assert all(map(torch.equal, found, same))
