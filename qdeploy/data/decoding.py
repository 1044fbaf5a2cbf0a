"""Batches of image files, decoded by worker processes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
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
        decoded = _DecodedBatches(
            self._images,
            [batch.tolist() for batch in batches if len(batch)],
            section.image_size or IMAGENET_SIZE,
            None if self._seed is None else [self._seed, index],
        )
        # With a generator of its own the loader leaves torch's random numbers alone.
        loader = DataLoader(
            decoded, batch_size=None, num_workers=section.workers, generator=torch.Generator()
        )
        for batch in loader:
            if isinstance(batch, QdeployError):
                raise batch
            images, labels = (part.to(self._normalise.device) for part in batch)
            yield self._normalise(images), labels


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
