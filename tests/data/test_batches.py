"""Batches of arrays: normalisation, order and augmentation against NumPy, image by image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published import random_images

from qdeploy.data.batches import (
    WHOLE,
    ArrayBatches,
    Normalisation,
    Share,
    augment,
    number_of_batches,
)
from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataPhase, DataSection

UNCHANGED = Normalisation([0.0], [1 / 255], "cpu")


def section(batch_size: int, **augmentation: object) -> DataSection:
    return DataSection(dataset="mnist", batch_size=batch_size, **augmentation)


def batches(
    count: int, batch_size: int, seed: int | None = None, share: Share = WHOLE, **augmentation
) -> ArrayBatches:
    """Images of one pixel; image n has pixel and label n."""
    pixels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = LabelledImages(pixels, np.arange(count))
    return ArrayBatches(data, section(batch_size, **augmentation), UNCHANGED, seed, share)


def labels_of(some: ArrayBatches, index: int) -> list[int]:
    return torch.cat([labels for _, labels in some.epoch(index)]).tolist()


def test_normalisation_is_per_channel():
    images, labels = random_images(4, 3, 5, 6)
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]
    data = LabelledImages(images, labels)
    [(normalised, _)] = ArrayBatches(data, section(4), Normalisation(mean, std, "cpu")).epoch(0)
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-6)


def test_without_shuffling_every_epoch_is_in_order_and_whole():
    some = batches(7, batch_size=3)
    assert labels_of(some, 0) == labels_of(some, 5) == list(range(7))
    assert [len(labels) for _, labels in some.epoch(0)] == [3, 3, 1]


@given(count=st.integers(1, 40), batch_size=st.integers(2, 9), shuffled=st.booleans())
def test_length_is_the_number_of_batches(count, batch_size, shuffled):
    some = batches(count, batch_size, 0 if shuffled else None)
    assert len(list(some.epoch(0))) == some.steps_before(1)
    assert some.samples == count


@pytest.mark.parametrize(
    ("samples", "smallest", "expected"),
    [(8, 2, 2), (9, 2, 2), (10, 2, 3), (8, 1, 2), (9, 1, 3), (1, 2, 0), (10, 3, 2), (11, 3, 3)],
)
def test_a_last_batch_that_is_too_small_is_left_out(samples, smallest, expected):
    assert number_of_batches(samples, 4, smallest) == expected


def test_an_epoch_of_training_has_each_image_once_with_its_label():
    some = batches(50, batch_size=8, seed=3)
    assert sorted(labels_of(some, 0)) == list(range(50))
    for images, labels in some.epoch(1):
        np.testing.assert_allclose(images.flatten(), labels, atol=1e-4)


def test_an_epoch_depends_on_seed_and_index_alone():
    some = batches(50, batch_size=8, seed=3)
    first = labels_of(some, 4)
    torch.manual_seed(1)
    assert labels_of(batches(50, batch_size=8, seed=3), 4) == first
    assert labels_of(some, 5) != first
    assert labels_of(batches(50, batch_size=8, seed=4), 4) != first


def test_an_epoch_leaves_the_random_numbers_of_torch_alone():
    state = torch.random.get_rng_state()
    labels_of(batches(9, batch_size=2, seed=0, flip=True), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(pad_crop=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 1000))
def test_augmented_images_are_crops_of_the_padded_and_mirrored(pad_crop, flip, seed):
    images, _ = random_images(6, 2, 5, 4, seed=seed)
    random = np.random.default_rng(seed)
    augmented = augment(torch.from_numpy(images), pad_crop, flip, random).numpy()
    for image, result in zip(images, augmented, strict=True):
        padded = np.pad(image, ((0, 0), (pad_crop, pad_crop), (pad_crop, pad_crop)))
        crops = [
            padded[:, top : top + 5, left : left + 4]
            for top in range(2 * pad_crop + 1)
            for left in range(2 * pad_crop + 1)
        ]
        allowed = crops + [crop[..., ::-1] for crop in crops] * flip
        assert any(np.array_equal(result, crop) for crop in allowed)


def test_all_shifts_and_mirrors_come_up_equally_often():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    count = 18 * 400
    augmented = augment(image.expand(count, -1, -1, -1), 1, True, np.random.default_rng(0))
    _, frequencies = torch.unique(augmented.flatten(1), dim=0, return_counts=True)
    assert len(frequencies) == 18
    assert frequencies.min() > 320
    assert frequencies.max() < 480


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_the_same_batches():
    data = LabelledImages(*random_images(20, 3, 8, 8))
    on_cpu, on_cuda = (
        ArrayBatches(
            data,
            section(8, pad_crop=2, flip=True),
            Normalisation([0.5] * 3, [0.2] * 3, device),
            seed=0,
        )
        for device in ("cpu", "cuda")
    )
    for (images, labels), (same, same_labels) in zip(
        on_cpu.epoch(1), on_cuda.epoch(1), strict=True
    ):
        assert same.is_cuda
        torch.testing.assert_close(same.cpu(), images)
        assert torch.equal(same_labels.cpu(), labels)


def test_batches_are_stored_channels_last():
    images, labels = random_images(4, 3, 5, 6)
    data = LabelledImages(images, labels)
    some = ArrayBatches(data, section(4), Normalisation([0] * 3, [1] * 3, "cpu"))
    [(batch, _)] = some.epoch(0)
    assert batch.is_contiguous(memory_format=torch.channels_last)


class TestShares:
    @given(count=st.integers(2, 40), processes=st.integers(1, 4))
    def test_together_the_processes_train_on_the_batches_of_one(self, count, processes):
        parts = [
            list(batches(count, 12, 1, Share(rank, processes), pad_crop=1).epoch(3))
            for rank in range(processes)
        ]
        left = 0
        for step, (images, labels) in enumerate(batches(count, 12, 1, pad_crop=1).epoch(3)):
            same = [part[step] for part in parts if step < len(part)]
            kept = sum(len(some) for _, some in same)
            assert len(same) in (0, processes)
            assert kept <= len(labels) < kept + processes
            if same:
                assert {len(some) for _, some in same} == {kept // processes}
                order = torch.cat([some for _, some in same]).argsort()
                wanted = labels[:kept].argsort()
                together = torch.cat([some for some, _ in same])
                assert torch.equal(together[order], images[:kept][wanted])
            left += len(labels) - kept
        assert left < processes

    @given(count=st.integers(1, 20), processes=st.integers(1, 5))
    def test_every_image_is_tested_once(self, count, processes):
        shares = [batches(count, 6, None, Share(rank, processes)) for rank in range(processes)]
        found = [labels for some in shares for _, labels in some.epoch(0)]
        assert sorted(torch.cat(found).tolist()) == list(range(count))

    def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(self):
        with pytest.raises(QdeployError, match=r"data\.batch_size 10 .* choose a multiple of 4"):
            batches(30, 10, 0, Share(1, 4))
        assert batches(30, 10, None, Share(1, 4)).steps_before(1) == 3

    def test_a_phase_whose_batch_cannot_be_shared_out_evenly_is_refused(self):
        start = batches(30, 12, 0, Share(1, 4))
        regime = (DataPhase(epoch=1, batch_size=10),)
        with pytest.raises(QdeployError, match=r"data\.batch_size 10 .* choose a multiple of 4"):
            start.under(section(12, regime=regime))
