"""Batches from image files: what workers decode does not depend on how many they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import random_images

from qdeploy.data.batches import WHOLE, Normalisation, Share
from qdeploy.data.decoding import FolderBatches, decode
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

PIXELS = Normalisation([0.0] * 3, [1 / 255] * 3, "cpu")


@pytest.fixture
def images(tmp_path) -> ImageFolder:
    """Nine random 16x16 images in three classes; their size is that of the batches."""
    pixels, _ = random_images(9, 16, 16, 3)
    for number, image in enumerate(pixels):
        path = tmp_path / "abc"[number // 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return ImageFolder(tmp_path)


def batches(
    images: ImageFolder, workers: int, shuffle_seed: int | None = None, share: Share = WHOLE
) -> FolderBatches:
    section = DataSection(dataset="folder", image_size=16, batch_size=4, workers=workers)
    return FolderBatches(images, section, PIXELS, shuffle_seed, share)


def epoch(some: FolderBatches, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(some.epoch(index))
    assert len(parts) == some.steps_before(1)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def test_in_order_each_image_has_its_label(images):
    decoded, labels = epoch(batches(images, workers=0), 0)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    written, _ = random_images(9, 16, 16, 3)
    centre = written[:, 6:10, 6:10].mean((1, 2))  # the crop enlarges the image about its centre
    np.testing.assert_allclose(decoded[:, :, 6:10, 6:10].mean((2, 3)), centre, atol=12)
    assert decoded.shape == (9, 3, 16, 16)
    assert decoded.dtype == torch.float32


@pytest.mark.parametrize("shuffle_seed", [None, 7])
def test_the_number_of_workers_changes_nothing(images, shuffle_seed):
    expected = epoch(batches(images, 0, shuffle_seed), 3)
    for workers in (1, 2):
        for part, same in zip(
            epoch(batches(images, workers, shuffle_seed), 3), expected, strict=True
        ):
            assert torch.equal(part, same)


def test_order_and_crops_of_training_depend_on_seed_and_index(images):
    decoded, labels = epoch(batches(images, 0, shuffle_seed=7), 0)
    assert len(labels) == 8  # the ninth would be a batch of a single image
    crops = {crop.numpy().tobytes() for crop in decoded}
    for shuffle_seed, index in [(7, 1), (8, 0)]:
        others, other_labels = epoch(batches(images, 0, shuffle_seed), index)
        assert crops.isdisjoint(crop.numpy().tobytes() for crop in others)
        assert other_labels.tolist() != labels.tolist()


def test_an_epoch_leaves_the_random_numbers_of_torch_alone(images):
    state = torch.random.get_rng_state()
    epoch(batches(images, 1, shuffle_seed=0), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_without_a_worker_s_traceback(images, workers):
    images.paths[5].write_bytes(images.paths[5].read_bytes()[:60])
    with pytest.raises(QdeployError) as caught:
        epoch(batches(images, workers), 0)
    assert str(caught.value).startswith(f"{images.paths[5]} cannot be decoded (")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "image.tif")
    image = decode(tmp_path / "image.tif")
    assert (image.mode, image.size) == ("RGB", (5, 4))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_any_truncation_is_an_error_or_an_image(tmp_path, suffix):
    path: Path = tmp_path / f"image.{suffix}"
    Image.fromarray(random_images(1, 12, 12, 3)[0][0]).save(path)
    content = path.read_bytes()
    errors = 0
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            assert decode(path).size == (12, 12)
        except QdeployError:
            errors += 1
    assert errors > len(content) // 7 // 2


def test_two_processes_share_the_batches_of_one(images):
    def shares(shuffle_seed):
        return [list(batches(images, 0, shuffle_seed, Share(rank, 2)).epoch(1)) for rank in (0, 1)]

    # 9 images: two batches of 4, and a last one of a single image, only for testing.
    whole = list(batches(images, workers=0, shuffle_seed=7).epoch(1))
    for (first, _), (second, _), (all_four, _) in zip(*shares(7), whole, strict=True):
        assert torch.equal(torch.stack([first, second], 1).flatten(0, 1), all_four)
    tested = [labels for share in shares(None) for _, labels in share]
    assert torch.cat(tested).bincount().tolist() == [3, 3, 3]
