"""From the recipe's [data] to the batches of a training and a test set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdeploy.data.batches import WHOLE, ArrayBatches, Batches, Normalisation, Share
from qdeploy.data.crops import CENTRE
from qdeploy.data.decoding import FolderBatches
from qdeploy.datasets import Dataset, find
from qdeploy.datasets.downloads import find_files
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

_ROOT = Path("data")
_TEST_BATCH = 500  # of images that are on the device already


@dataclass(frozen=True)
class Data:
    """A data set, ready for training. `input_shape` is (C, H, W) of one image.

    `mean` and `std` are those that the batches are normalised with, per channel, and `crop` is the
    share of an image's short side that testing takes of its centre.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
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
    train, test = _splits(section.dataset, dataset, root, download)
    classes = dataset.classes or getattr(train, "classes", ())
    if not classes:
        raise QdeployError(
            f"data set {section.dataset!r} names no classes; its Dataset must give them as `classes`, "
            "in the order of the labels"
        )
    mean, std = _normalisation(section, dataset)
    normalise = Normalisation(mean, std, device)
    batches = FolderBatches if dataset.image_files else ArrayBatches
    test_batch = section.batch_size if dataset.image_files else max(section.batch_size, _TEST_BATCH)
    tested = section.model_copy(update={"batch_size": test_batch, "regime": ()})
    trained = batches(train, section, normalise, seed, share)
    return Data(
        name=section.dataset,
        title=section.title or dataset.title or root.resolve().name,
        classes=classes,
        input_shape=trained.input_shape,
        mean=mean,
        std=std,
        crop=CENTRE if dataset.image_files else 1.0,
        train=trained,
        test=batches(test, tested, normalise, share=share),
    )


def _splits(name: str, dataset: Dataset, root: Path, download: bool) -> tuple[Any, Any]:
    """What the data set reads for training and for testing."""
    try:
        return dataset.read(*(find_files(dataset, root, download) or [root]))
    except OSError as error:
        raise QdeployError(
            f"data set {name!r} cannot read {error.filename or root}: {error.strerror or error}; give "
            "the folder of its files as data.root or --data-root"
        ) from error


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
