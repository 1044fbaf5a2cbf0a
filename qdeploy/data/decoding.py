"""Batches of image files, decoded by worker processes."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from qdeploy.data.batches import WHOLE, Batch, Batches, Normalisation, Share
from qdeploy.data.crops import centre_crop, random_crop
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

IMAGENET_SIZE = 224


class FolderBatches(Batches):
    """Batches of decoded images.

    Training takes ImageNet's random-resized crops and flips, testing its centre crop. A crop depends
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

    @property
    def input_shape(self) -> tuple[int, int, int]:
        size = self._section.image_size or IMAGENET_SIZE
        return 3, size, size

    def epoch(self, index: int) -> Iterator[Batch]:
        section = self._phase(index)
        batches = [self._own(batch) for batch in self._chosen(section, self._random(index))]
        decode_batch = partial(
            _decoded,
            images=self._images,
            size=section.image_size or IMAGENET_SIZE,
            seed=None if self._seed is None else [self._seed, index],
        )
        loader = DataLoader(
            # To a loader a list is a data set, here one of whole batches.
            cast("Dataset[list[int]]", [batch.tolist() for batch in batches if len(batch)]),
            batch_size=None,
            collate_fn=decode_batch,
            num_workers=section.workers,
            pin_memory=self._normalise.device.type == "cuda",
            generator=torch.Generator(),  # of its own, so that torch's random numbers are left alone
        )
        for batch in loader:
            if isinstance(batch, QdeployError):
                raise batch
            # From pinned memory a copy runs beside the step before it.
            images, labels = (part.to(self._normalise.device, non_blocking=True) for part in batch)
            yield self._normalise(images), labels


def _decoded(
    numbers: list[int], images: ImageFolder, size: int, seed: list[int] | None
) -> Batch | QdeployError:
    """A batch as a worker decodes it: uint8 images and labels.

    An error is returned: raised in a worker, it would arrive wrapped in that worker's traceback.
    """
    crops = []
    for number in numbers:
        try:
            image = decode(images.paths[number])
        except QdeployError as error:
            return error
        if seed is None:
            image = centre_crop(image, size)
        else:
            image = random_crop(image, size, np.random.default_rng([*seed, number]))
        crops.append(torch.tensor(np.asarray(image)).permute(2, 0, 1))
    return torch.stack(crops), torch.tensor([images.labels[number] for number in numbers])


def decode(path: Path) -> Image.Image:
    """The image in RGB. Raises QdeployError naming the file if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders share no exception
        raise QdeployError(
            f"{path} cannot be decoded ({error}). Replace the file or delete it."
        ) from error
