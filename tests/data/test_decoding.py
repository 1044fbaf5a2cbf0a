"""Batches from image files: what workers decode does not depend on how many they are."""

import numpy as np
import pytest
import torch
from PIL import Image
from published import random_images

from qdeploy.data.augmentation import augmentation_of
from qdeploy.data.batches import WHOLE, Normalisation, Share
from qdeploy.data.decoding import FolderBatches, fit_of
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import Fit
from qdeploy.recipe import DataPhase, DataSection

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
    assert str(caught.value).startswith(f"{images.paths[5]} cannot be read: ")
    assert 'let data.scan = "full" find all files' in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{}, {"resize": 20}, {"resize": "whole", "interpolation": "nearest"}]
)
def test_what_is_tested_is_the_fit_of_the_recipe_at_any_phase(images, given):
    section = DataSection(dataset="folder", image_size=16, batch_size=9, workers=0, **given)
    [(tested, _)] = FolderBatches(images, section, PIXELS).epoch(0)
    crop = {"whole": None, None: 0.875, 20: 0.8}[given.get("resize")]
    fit = Fit(crop, given.get("interpolation", "bilinear"))
    assert fit == fit_of(section, 16)
    for found, path in zip(tested, images.paths, strict=True):
        expected = np.asarray(fit(Image.open(path), 16, 16), float)
        np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=1e-3)
    # In a phase of another size training without augmentation has the same share of the image.
    phase = {"epoch": 0, "image_size": 8, "augmentation": "none"}
    trained = FolderBatches(images, section, PIXELS, seed=0).under(
        section.model_copy(update={"regime": (DataPhase(**phase),)})
    )
    [(small, _)] = trained.epoch(0)
    found = sorted(image.permute(1, 2, 0).round().byte().numpy().tobytes() for image in small)
    assert found == sorted(fit(Image.open(path), 8, 8).tobytes() for path in images.paths)


def test_a_resize_below_the_size_is_refused():
    section = DataSection(dataset="folder", resize=100)
    assert fit_of(section, 100) == Fit(1.0)
    with pytest.raises(QdeployError, match=r"data\.resize is 100, and no centre of 101 x 101"):
        fit_of(section, 101)


@pytest.mark.parametrize("augmentation", ["none", "light", "imagenet"])
def test_what_is_drawn_of_an_image_depends_on_seed_epoch_and_its_number(images, augmentation):
    section = DataSection(
        dataset="folder", image_size=16, batch_size=9, workers=0,
        augmentation=augmentation, colour_jitter=0.3,
    )  # fmt: skip
    for index in (0, 3):
        [(found, _)] = FolderBatches(images, section, PIXELS, seed=7).epoch(index)
        augment = augmentation_of(section, fit_of(section, 16))
        order = np.random.default_rng([7, index]).permutation(9)
        for image, number in zip(found, order, strict=True):
            random = np.random.default_rng([7, index, number])
            drawn = augment(Image.open(images.paths[number]), 16, random)
            np.testing.assert_allclose(image.permute(1, 2, 0), np.asarray(drawn, float), atol=1e-3)


def test_two_processes_share_the_batches_of_one(images):
    def shares(shuffle_seed):
        return [list(batches(images, 0, shuffle_seed, Share(rank, 2)).epoch(1)) for rank in (0, 1)]

    # 9 images: two batches of 4, and a last one of a single image, only for testing.
    whole = list(batches(images, workers=0, shuffle_seed=7).epoch(1))
    for (first, _), (second, _), (all_four, _) in zip(*shares(7), whole, strict=True):
        assert torch.equal(torch.stack([first, second], 1).flatten(0, 1), all_four)
    tested = [labels for share in shares(None) for _, labels in share]
    assert torch.cat(tested).bincount().tolist() == [3, 3, 3]
