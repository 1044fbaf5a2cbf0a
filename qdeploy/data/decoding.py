"""Batches of image files, decoded by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from qdeploy.data.augmentation import augmentation_of
from qdeploy.data.batches import WHOLE, Batch, Batches, Normalisation, Share
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import CENTRE, Fit
from qdeploy.pictures.preprocessing import planes
from qdeploy.pictures.reading import read
from qdeploy.recipe import DataSection

IMAGENET_SIZE = 224

Result = TypeVar("Result")
# An RGB image as one of the network's size; the number is that of the image in the folder.
Shaped = Callable[[Image.Image, int], Image.Image]


class FolderBatches(Batches):
    """Batches of decoded images.

    Training takes what [data] has for augmentation, testing the fit of `fit_of`. What is drawn depends
    on the seed, the epoch and the image's place in the folder, so the number of workers changes nothing.
    """

    def __init__(
        self,
        images: ImageFolder,
        section: DataSection,
        normalise: Normalisation,
        seed: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        super().__init__(len(images.paths), section, seed, share)
        self._images = images
        self._normalise = normalise
        # What is tested keeps these two under any regime.
        self._size = section.image_size or IMAGENET_SIZE
        self._fit = fit_of(section, self._size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        size = self._section.image_size or self._size
        return 3, size, size

    def epoch(self, index: int) -> Iterator[Batch]:
        section = self._phase(index)
        batches = [self._own(batch) for batch in self._chosen(section, self._random(index))]
        decode_batch = partial(_decoded, images=self._images, shaped=self._shaped(section, index))
        numbers = [batch.tolist() for batch in batches if len(batch)]
        pinned = self._normalise.device.type == "cuda"
        for batch in worked(numbers, decode_batch, section.workers, pinned):
            if isinstance(batch, QdeployError):
                raise batch
            # From pinned memory a copy runs beside the step before it.
            images, labels = (part.to(self._normalise.device, non_blocking=True) for part in batch)
            yield self._normalise(images), labels

    def _shaped(self, section: DataSection, index: int) -> Shaped:
        size = section.image_size or self._size
        if self._seed is None:
            return partial(_fitted, fit=self._fit, size=size)
        augment = augmentation_of(section, self._fit)
        return partial(_drawn, augment=augment, size=size, seed=[self._seed, index])


def fit_of(section: DataSection, size: int) -> Fit:
    """How [data] has images of size x size tested. Errors: QdeployError for a resize below the size."""
    if section.resize == "whole":
        return Fit(None, section.interpolation)
    if section.resize is None:
        return Fit(CENTRE, section.interpolation)
    if section.resize < size:
        raise QdeployError(
            f"data.resize is {section.resize}, and no centre of {size} x {size} can be cut out of that; "
            f'give {size} or more, a smaller data.image_size, or resize = "whole"'
        )
    return Fit(size / section.resize, section.interpolation)


def worked(
    items: list[Any], work: Callable[[Any], Result], workers: int, pinned: bool = False
) -> Iterator[Result]:
    """work(item) of each item in order, by so many worker processes; 0: by this one.

    An error that is to be read is returned: raised in a worker, it would arrive wrapped in that
    worker's traceback.
    """
    loader = DataLoader(
        cast("Dataset[Any]", items),  # to a loader a list is a data set
        batch_size=None,
        collate_fn=work,
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),  # of its own, so that torch's random numbers are left alone
    )
    return iter(loader)


def _decoded(numbers: list[int], images: ImageFolder, shaped: Shaped) -> Batch | QdeployError:
    """A batch as a worker decodes it: uint8 images and labels."""
    decoded = []
    for number in numbers:
        try:
            image = read(images.paths[number])
        except QdeployError as error:
            return QdeployError(
                f'{error}, or let data.scan = "full" find all files that cannot be decoded before '
                "training begins"
            )
        decoded.append(torch.from_numpy(planes(shaped(image, number))))
    return torch.stack(decoded), torch.tensor([images.labels[number] for number in numbers])


def _fitted(image: Image.Image, number: int, fit: Fit, size: int) -> Image.Image:
    return fit(image, size, size)


def _drawn(
    image: Image.Image, number: int, augment: Callable[..., Image.Image], size: int, seed: list[int]
) -> Image.Image:
    return augment(image, size, np.random.default_rng([*seed, number]))
