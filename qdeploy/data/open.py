"""From the recipe's [data] to the batches of a training, a validation and a test set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from qdeploy.data.batches import WHOLE, ArrayBatches, Batches, Normalisation, Share
from qdeploy.data.decoding import FolderBatches, fit_of
from qdeploy.data.own_data import OwnBatches, as_own_data
from qdeploy.data.survey import Survey, listing_of, look_at
from qdeploy.datasets import Dataset, LabelledImages, available, find
from qdeploy.datasets.downloads import find_files
from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import Fit
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
    fit        how testing gets pictures into the input's size; None where the user's data set does that
    val        what epochs are compared on; None where that is the test set itself
    survey     of image files
    notes      lines for the log
    """

    name: str
    title: str
    classes: tuple[str, ...]
    example: tuple[Tensor, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fit: Fit | None
    train: Batches
    test: Batches
    val: Batches | None = None
    survey: Survey | None = None
    notes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, (C, H, W) of an image; of several the first."""
        return tuple(self.example[0].shape[1:])

    @property
    def noun(self) -> str:
        """What several inputs are called."""
        return "images" if len(self.input_shape) == 3 else "samples"

    def in_training(self) -> Self:
        """The same, with the validation set, if there is one, as what epochs are tested on."""
        return self if self.val is None else replace(self, test=self.val)


def open_data(
    section: DataSection,
    root: Path | None,
    download: bool,
    device: torch.device | str,
    seed: int,
    share: Share = WHOLE,
    survey: Survey | None = None,
    copy: Path | None = None,
) -> Data:
    """Opens the data set of a recipe, its batches on `device`; this process takes its `share` of each.

    Files are looked for below `root`, else below the recipe's root, else below ./data; missing
    ones are fetched if `download`. `survey` is what a look at the same image files found before; without
    one every file is looked at. `copy` is an earlier copy of the file of a function, see
    Reference. Raises QdeployError for files that are missing or damaged.
    """
    root = root or Path(section.root or _ROOT)
    if ":" in section.dataset:
        return _own(section, root, device, seed, share, copy)
    dataset = find(section.dataset)
    splits = _splits(section.dataset, dataset, root, download)
    notes: list[str] = []
    if dataset.image_files:
        splits, survey, notes = _surveyed(splits, root, section, survey)
        section = section.model_copy(update={"image_size": survey.image_size})
    train, val, test = with_val_share(splits, section.val_share, seed)
    batches = FolderBatches if dataset.image_files else ArrayBatches
    mean, std = _normalisation(section, dataset)
    normalise = Normalisation(mean, std, device)
    test_batch = section.batch_size if dataset.image_files else max(section.batch_size, _TEST_BATCH)
    tested = section.model_copy(update={"batch_size": test_batch, "regime": ()})
    trained = batches(train, section, normalise, seed, share)
    data = Data(
        name=section.dataset,
        title=section.title or dataset.title or root.resolve().name,
        classes=_classes(section.dataset, dataset, train),
        example=(torch.zeros(2, *trained.input_shape),),
        mean=mean,
        std=std,
        fit=fit_of(section, survey.image_size) if survey else Fit(crop=1.0),
        train=trained,
        test=batches(test, tested, normalise, share=share),
        val=None if val is None else batches(val, tested, normalise, share=share),
        survey=survey if dataset.image_files else None,
    )
    return replace(data, notes=(*notes, *_which_is_which(data)))


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
    tested = section.model_copy(update={"regime": ()})
    train = OwnBatches(name, own.train, section, own.collate, device, seed, share)
    test, val = (
        None if part is None else OwnBatches(name, part, tested, own.collate, device, share=share)
        for part in (own.test, own.val)
    )
    assert test is not None
    data = Data(
        name=name,
        title=section.title or f"{Path(reference.place).name}:{reference.name}",
        classes=own.classes,
        example=as_inputs(test.first(2)[0]),
        mean=own.mean,
        std=own.std,
        fit=None,
        train=train,
        test=test,
        val=val,
    )
    return replace(data, notes=tuple(_which_is_which(data)))


def data_reference(dataset: str, copy: Path | None = None) -> Reference:
    """Where the function of a data set is. Errors: QdeployError if nothing is named."""
    place, _, name = dataset.rpartition(":")
    forms = f"one of {', '.join(available())}, file.py:function or package.module:function"
    return Reference("data set", dataset, place, name, forms, copy)


def as_inputs(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


def _classes(name: str, dataset: Dataset, train: Any) -> tuple[str, ...]:
    classes: tuple[str, ...] = dataset.classes or getattr(train, "classes", ())
    if not classes:
        raise QdeployError(
            f"data set {name!r} names no classes; its Dataset must give them as `classes`, "
            "in the order of the labels"
        )
    return classes


def _surveyed(
    splits: Sequence[Any], root: Path, section: DataSection, survey: Survey | None
) -> tuple[tuple[Any, ...], Survey, list[str]]:
    """The splits without the files that are left out, what is known of them all, and lines for the log."""
    there = [images for images in splits if images is not None]
    if survey is None:
        survey, notes = look_at(there, root, section)
    else:
        survey, notes = replace(survey, listing=listing_of(there, root)), []
    kept = (images if images is None else survey.kept(images, root) for images in splits)
    return tuple(kept), survey, notes


def with_val_share(
    splits: Sequence[Any], val_share: float | None, seed: int
) -> tuple[Any, Any, Any]:
    """The training set, the validation set or None, and the test set.

    What a data set lacks is None in `splits`, (train, test) or (train, val, test). A share of the
    training images becomes the validation set; without a test set the validation set is that.

    Errors: QdeployError for a share where there is a validation set, and for none where nothing is left
    to test on.
    """
    train, *others = splits
    val, test = others if len(others) == 2 else (None, *others)
    if val_share is not None:
        if val is not None:
            raise QdeployError(
                f"the data set has a validation set of {len(val.labels):,} images; remove data.val_share"
            )
        train, val = _parted(train, val_share, seed)
    if test is not None:
        return train, val, test
    if val is None:
        raise QdeployError(
            "the data set has nothing to test on; put images into a folder val or test beside train, or "
            "keep a share of the training images for that, such as data.val_share = 0.1"
        )
    return train, None, val


def _parted(data: Any, share: float, seed: int) -> tuple[Any, Any]:
    """What stays and the share that is drawn, of each class one image or more, all in their order."""
    labels = np.asarray(data.labels)
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        ours = np.flatnonzero(labels == label)
        # A stream of its own for each class: other classes, more or fewer, change nothing.
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(label),)))
        count = max(1, round(share * len(ours)))
        if count >= len(ours):
            raise QdeployError(
                f"data.val_share {share} of the {len(ours)} images of class {label} leaves none to train "
                "on; give a smaller share, or more images"
            )
        drawn[random.permutation(ours)[:count]] = True
    return _chosen(data, np.flatnonzero(~drawn)), _chosen(data, np.flatnonzero(drawn))


def _chosen(data: Any, numbers: npt.NDArray[np.intp]) -> Any:
    if isinstance(data, LabelledImages):
        return LabelledImages(data.images[numbers], data.labels[numbers])
    return data.chosen(numbers.tolist())


def _which_is_which(data: Data) -> Iterator[str]:
    if data.val is not None:
        yield (
            f"epochs are tested on {data.val.samples:,} validation {data.noun}, exported files on "
            f"{data.test.samples:,} test {data.noun}"
        )


def _splits(name: str, dataset: Dataset, root: Path, download: bool) -> tuple[Any, ...]:
    """What the data set reads."""
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
