"""From the recipe's [data] to the batches of a training and a test set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.data.batches import WHOLE, ArrayBatches, Batches, Normalisation, Share
from qdeploy.data.crops import CENTRE
from qdeploy.data.decoding import FolderBatches
from qdeploy.data.own_data import OwnBatches, as_own_data
from qdeploy.datasets import Dataset, available, find
from qdeploy.datasets.downloads import find_files
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection
from qdeploy.references import Reference

_ROOT = Path("data")
_TEST_BATCH = 500  # of images that are on the device already


@dataclass(frozen=True)
class Data:
    """A data set, ready for training.

    example    two inputs, on the CPU; of images, blank ones
    mean, std  what the batches are normalised with, per channel; None where the user's data set
               does not say
    crop       the share of an image's short side that testing takes of its centre
    """

    name: str
    title: str
    classes: tuple[str, ...]
    example: tuple[Tensor, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop: float
    train: Batches
    test: Batches

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, (C, H, W) of an image; of several the first."""
        return tuple(self.example[0].shape[1:])


def open_data(
    section: DataSection,
    root: Path | None,
    download: bool,
    device: torch.device | str,
    seed: int,
    share: Share = WHOLE,
    copy: Path | None = None,
) -> Data:
    """Opens the data set of a recipe, its batches on `device`; this process takes its `share` of each.

    Files are looked for below `root`, else below the recipe's root, else below ./data; missing
    ones are fetched if `download`. copy: an earlier copy of the file of a function, see Reference.
    Raises QdeployError for files that are missing or damaged.
    """
    root = root or Path(section.root or _ROOT)
    if ":" in section.dataset:
        return _own(section, root, device, seed, share, copy)
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
        example=(torch.zeros(2, *trained.input_shape),),
        mean=mean,
        std=std,
        crop=CENTRE if dataset.image_files else 1.0,
        train=trained,
        test=batches(test, tested, normalise, share=share),
    )


def _own(
    section: DataSection,
    root: Path,
    device: torch.device | str,
    seed: int,
    share: Share,
    copy: Path | None,
) -> Data:
    """What the user's function returns. It gets `root`, the folder of the data, if it takes that."""
    name, reference = section.dataset, data_reference(section.dataset, copy)
    own = as_own_data(name, reference.called(section.options, root=root))
    train = OwnBatches(name, own.train, section, own.collate, device, seed, share)
    tested = section.model_copy(update={"regime": ()})
    test = OwnBatches(name, own.test, tested, own.collate, device, share=share)
    return Data(
        name=name,
        title=section.title or reference.name,
        classes=own.classes,
        example=as_inputs(test.first(2)[0]),
        mean=own.mean,
        std=own.std,
        crop=1.0,
        train=train,
        test=test,
    )


def data_reference(dataset: str, copy: Path | None = None) -> Reference:
    """Where the function of a data set is. Errors: QdeployError if nothing is named."""
    place, _, name = dataset.rpartition(":")
    forms = f"one of {', '.join(available())}, file.py:function or package.module:function"
    return Reference("data set", dataset, place, name, forms, copy)


def as_inputs(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


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
