"""Batches of image files, decoded by worker processes."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qdeploy.data.batches import (
    WHOLE,
    Batch,
    Normalisation,
    Share,
    number_of_batches,
    smallest_batch,
)
from qdeploy.data.crops import centre_crop, random_crop
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection


class FolderBatches:
    """Batches of decoded images.

    `shuffle_seed` is for training: ImageNet's random-resized crops and flips, in a new order
    each epoch. None is for testing: ImageNet's centre crop, in order. A crop depends on the seed,
    the epoch and the image's place in the folder, so the number of workers changes nothing.
    """

    def __init__(
        self,
        images: ImageFolder,
        image_size: int,
        batch_size: int,
        workers: int,
        normalise: Normalisation,
        shuffle_seed: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        if shuffle_seed is not None:
            share.check(batch_size)
        self._images = images
        self._image_size = image_size
        self._batch_size = batch_size
        self._workers = workers
        self._normalise = normalise
        self._shuffle_seed = shuffle_seed
        self._share = share

    @property
    def samples(self) -> int:
        return len(self._images.paths)

    def __len__(self) -> int:
        smallest = 1 if self._shuffle_seed is None else smallest_batch(self._share)
        return number_of_batches(self.samples, self._batch_size, smallest)

    def steps_before(self, index: int) -> int:
        return index * len(self)

    def under(self, section: DataSection) -> Self:
        if self._shuffle_seed is not None:
            self._share.check(section.batch_size)
        other = copy.copy(self)
        other._batch_size = section.batch_size
        other._image_size = section.image_size or self._image_size
        return other

    def epoch(self, index: int) -> Iterator[Batch]:
        seed = None if self._shuffle_seed is None else [self._shuffle_seed, index]
        decoded = _DecodedBatches(self._images, self._chosen(seed), self._image_size, seed)
        # With a generator of its own the loader leaves torch's random numbers alone.
        loader = DataLoader(
            decoded, batch_size=None, num_workers=self._workers, generator=torch.Generator()
        )
        for batch in loader:
            if isinstance(batch, QdeployError):
                raise batch
            images, labels = (part.to(self._normalise.device) for part in batch)
            yield self._normalise(images), labels

    def _chosen(self, seed: list[int] | None) -> list[list[int]]:
        """The numbers of the images in this process's share of each batch."""
        order = np.arange(self.samples)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        starts = range(0, len(self) * self._batch_size, self._batch_size)
        batches = [order[start : start + self._batch_size] for start in starts]
        if seed is None:
            shares = [batch[self._share.of_test].tolist() for batch in batches]
            return [share for share in shares if share]
        return [batch[self._share.of_training(len(batch))].tolist() for batch in batches]


class _DecodedBatches(Dataset[Batch | QdeployError]):
    """The batches of one epoch, as a worker decodes them: uint8 images and labels."""

    def __init__(
        self, images: ImageFolder, batches: list[list[int]], image_size: int, seed: list[int] | None
    ) -> None:
        self._images = images
        self._batches = batches
        self._image_size = image_size
        self._seed = seed

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch | QdeployError:
        chosen = self._batches[index]
        try:
            images = torch.stack([self._decode(number) for number in chosen])
        except QdeployError as error:
            # Raised in a worker, it would arrive wrapped in that worker's traceback.
            return error
        return images, torch.tensor([self._images.labels[number] for number in chosen])

    def _decode(self, number: int) -> Tensor:
        image = decode(self._images.paths[number])
        if self._seed is None:
            image = centre_crop(image, self._image_size)
        else:
            random = np.random.default_rng([*self._seed, number])
            image = random_crop(image, self._image_size, random)
        return torch.tensor(np.asarray(image)).permute(2, 0, 1)


def decode(path: Path) -> Image.Image:
    """The image in RGB. Raises QdeployError naming the file if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders share no exception
        raise QdeployError(
            f"{path} cannot be decoded ({error}). Replace the file or delete it."
        ) from error
