"""From the recipe's [data] to the batches of a training and a test set."""

from dataclasses import dataclass
from pathlib import Path

import torch

from qdeploy.data.batches import (
    WHOLE,
    ArrayBatches,
    Batches,
    Normalisation,
    Share,
    Shuffling,
)
from qdeploy.data.datasets import DATASETS
from qdeploy.data.decoding import FolderBatches
from qdeploy.data.downloads import find_files
from qdeploy.data.folder import open_splits
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

_ROOT = Path("data")
_TEST_BATCH = 500
_IMAGENET_SIZE = 224
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Data:
    """A data set, ready for training. `input_shape` is (C, H, W) of one image.

    `mean` and `std` are those that the batches are normalised with, per channel.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Batches
    test: Batches


def open_data(
    section: DataSection,
    root: Path | None,
    download: bool,
    device: torch.device | str,
    seed: int,
    share: Share = WHOLE,
) -> Data:
    """Opens the data set of a recipe, its batches on `device`; this process takes its `share` of each.

    Files are looked for below `root`, else below the recipe's root, else below ./data; missing
    ones are fetched if `download`. Raises QdeployError for files that are missing or damaged.
    """
    root = root or Path(section.root or _ROOT)
    if section.dataset == "folder":
        return _open_folder(section, root, device, seed, share)
    return _open_arrays(section, root, download, device, seed, share)


def _open_arrays(
    section: DataSection,
    root: Path,
    download: bool,
    device: torch.device | str,
    seed: int,
    share: Share,
) -> Data:
    """A data set that fits on the device; it is tested in batches of 500 images or more."""
    spec = DATASETS[section.dataset]
    train, test = spec.read(*find_files(spec, root, download))
    mean, std = _normalisation(section, spec.mean, spec.std)
    normalise = Normalisation(mean, std, device)
    shuffling = Shuffling(seed, section.pad_crop, section.flip)
    test_batch = max(section.batch_size, _TEST_BATCH)
    _, channels, *own_size = train.images.shape
    height, width = [section.image_size] * 2 if section.image_size else own_size
    return Data(
        name=section.dataset,
        title=section.title or spec.title,
        classes=spec.classes,
        input_shape=(channels, height, width),
        mean=mean,
        std=std,
        train=ArrayBatches(
            train, section.batch_size, normalise, shuffling, section.image_size, share
        ),
        test=ArrayBatches(test, test_batch, normalise, image_size=section.image_size, share=share),
    )


def _open_folder(
    section: DataSection, root: Path, device: torch.device | str, seed: int, share: Share
) -> Data:
    train, test = open_splits(root)
    mean, std = _normalisation(section, _IMAGENET_MEAN, _IMAGENET_STD)
    normalise = Normalisation(mean, std, device)
    size = section.image_size or _IMAGENET_SIZE
    batching = (size, section.batch_size, section.workers, normalise)
    return Data(
        name="folder",
        title=section.title or root.resolve().name,
        classes=train.classes,
        input_shape=(3, size, size),
        mean=mean,
        std=std,
        train=FolderBatches(train, *batching, shuffle_seed=seed, share=share),
        test=FolderBatches(test, *batching, share=share),
    )


def _normalisation(
    section: DataSection, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The recipe's mean and std, else the data set's own."""
    if section.mean is None or section.std is None:
        return mean, std
    if len(section.mean) != len(mean):
        raise QdeployError(
            f"data.mean and data.std: given {len(section.mean)} values, allowed: {len(mean)},"
            f" one for each channel of {section.dataset}"
        )
    return section.mean, section.std
