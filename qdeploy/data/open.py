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
from qdeploy.data.decoding import FolderBatches
from qdeploy.datasets import Dataset, LabelledImages, find
from qdeploy.datasets.downloads import find_files
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

_ROOT = Path("data")
_TEST_BATCH = 500
_IMAGENET_SIZE = 224


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
    dataset = find(section.dataset)
    read = dataset.read(*(find_files(dataset, root, download) or [root]))
    mean, std = _normalisation(section, dataset)
    normalise = Normalisation(mean, std, device)
    in_batches = _decoded if dataset.image_files else _on_device
    train, test, input_shape = in_batches(*read, section, normalise, seed, share)
    return Data(
        name=section.dataset,
        title=section.title or dataset.title or root.resolve().name,
        classes=dataset.classes or read[0].classes,
        input_shape=input_shape,
        mean=mean,
        std=std,
        train=train,
        test=test,
    )


_Opened = tuple[Batches, Batches, tuple[int, int, int]]


def _on_device(
    train: LabelledImages,
    test: LabelledImages,
    section: DataSection,
    normalise: Normalisation,
    seed: int,
    share: Share,
) -> _Opened:
    """A data set that fits on the device; it is tested in batches of 500 images or more."""
    size, batch_size = section.image_size, section.batch_size
    shuffling = Shuffling(seed, section.pad_crop, section.flip)
    test_batch_size = max(batch_size, _TEST_BATCH)
    _, channels, height, width = train.images.shape
    return (
        ArrayBatches(train, batch_size, normalise, shuffling, size, share),
        ArrayBatches(test, test_batch_size, normalise, image_size=size, share=share),
        (channels, size or height, size or width),
    )


def _decoded(
    train: ImageFolder,
    test: ImageFolder,
    section: DataSection,
    normalise: Normalisation,
    seed: int,
    share: Share,
) -> _Opened:
    """Image files, decoded a batch at a time."""
    size = section.image_size or _IMAGENET_SIZE
    batching = (size, section.batch_size, section.workers, normalise)
    return (
        FolderBatches(train, *batching, shuffle_seed=seed, share=share),
        FolderBatches(test, *batching, share=share),
        (3, size, size),
    )


def _normalisation(
    section: DataSection, dataset: Dataset
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The recipe's mean and std, else the data set's own."""
    if section.mean is None or section.std is None:
        return dataset.mean, dataset.std
    if len(section.mean) != len(dataset.mean):
        raise QdeployError(
            f"data.mean and data.std: given {len(section.mean)} values, allowed: "
            f"{len(dataset.mean)}, one for each channel of {section.dataset}"
        )
    return section.mean, section.std
