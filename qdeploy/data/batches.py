"""Batches of images: what an epoch is, and batches of data sets that fit on the device."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """A data set in batches."""

    @property
    def samples(self) -> int:
        """Number of images in the data set."""

    def steps_before(self, index: int) -> int:
        """Number of batches in all epochs before epoch `index`."""

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch `index`, which depend on it and on the seed alone.

        Images: float32 [N, C, H, W], normalised, on the device; labels: int64 [N].
        """

    def under(self, section: DataSection) -> "Batches":
        """The same images, batched and augmented as another [data] says."""


@dataclass(frozen=True)
class Share:
    """The part of each batch that process `rank` of `processes` takes.

    In training all take the same number, so that the mean of their gradients is the gradient of
    the batch: the last images of a batch that cannot be shared out evenly are left out.
    """

    rank: int = 0
    processes: int = 1

    def of_training(self, images: int) -> slice:
        """The part of a training batch of `images` images."""
        return slice(self.rank, images - images % self.processes, self.processes)

    @property
    def of_test(self) -> slice:
        """The part of any test batch; a process whose part is empty skips the batch."""
        return slice(self.rank, None, self.processes)

    def check(self, batch_size: int) -> None:
        """Raises QdeployError if a full batch does not divide evenly among the processes."""
        if batch_size % self.processes:
            raise QdeployError(
                f"data.batch_size {batch_size} cannot be shared out evenly to {self.processes} "
                f"processes: choose a multiple of {self.processes}, or another number of devices"
            )


WHOLE = Share()


class Normalisation:
    """(pixel / 255 - mean) / std per channel.

    Images are stored channels last: the convolutions of ResNet-20 then train up to 1.5 times as
    fast on a CPU, those of LeNet-5 as fast as before.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self._mean = 255 * torch.tensor(mean, device=device).reshape(1, -1, 1, 1)
        self._std = 255 * torch.tensor(std, device=device).reshape(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to float32."""
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        return (pixels - self._mean) / self._std

    def pixels(self, images: Tensor) -> Tensor:
        """The uint8 pixels of normalised images, rounded where resizing left fractions."""
        return (images * self._std + self._mean).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Shuffling:
    """The random part of training: a new order each epoch, `pad_crop` pixels of shift, flips.

    Random numbers are drawn on the CPU, by NumPy, and for whole batches: all devices see the same
    batches, and any number of processes can share them.
    """

    seed: int
    pad_crop: int = 0
    flip: bool = False


class ArrayBatches:
    """A whole data set as uint8 on the device, augmented there a batch at a time.

    With `shuffling` it is for training, and a last batch of a single image is left out because
    BatchNorm cannot train on it; other incomplete batches are kept. Without, it is in order.
    `image_size` resizes to a square, after the augmentation; None leaves the size as it is.
    `share` is what this process takes of each batch.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        normalise: Normalisation,
        shuffling: Shuffling | None = None,
        image_size: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        if shuffling is not None:
            share.check(batch_size)
        # A copy, because arrays that view a file's bytes are read-only.
        self._images = torch.tensor(data.images, device=normalise.device)
        self._labels = torch.tensor(data.labels, device=normalise.device)
        self._batch_size = batch_size
        self._normalise = normalise
        self._shuffling = shuffling
        self._image_size = image_size
        self._share = share

    @property
    def samples(self) -> int:
        return len(self._labels)

    def __len__(self) -> int:
        smallest = 1 if self._shuffling is None else smallest_batch(self._share)
        return number_of_batches(self.samples, self._batch_size, smallest)

    def steps_before(self, index: int) -> int:
        return index * len(self)

    def under(self, section: DataSection) -> Self:
        other = copy.copy(self)  # the images on the device are shared
        other._batch_size = section.batch_size
        other._image_size = section.image_size
        if self._shuffling is not None:
            self._share.check(section.batch_size)
            other._shuffling = replace(
                self._shuffling, pad_crop=section.pad_crop, flip=section.flip
            )
        return other

    def epoch(self, index: int) -> Iterator[Batch]:
        shuffling = self._shuffling
        return self._in_order() if shuffling is None else self._shuffled(shuffling, index)

    def _in_order(self) -> Iterator[Batch]:
        images, labels = self._images.split(self._batch_size), self._labels.split(self._batch_size)
        for some_images, some_labels in zip(images, labels, strict=True):
            own = self._share.of_test
            if len(some_labels[own]):
                yield self._finished(some_images[own]), some_labels[own]

    def _shuffled(self, shuffling: Shuffling, index: int) -> Iterator[Batch]:
        random = np.random.default_rng([shuffling.seed, index])
        order = torch.from_numpy(random.permutation(self.samples)).to(self._images.device)
        for chosen in order.split(self._batch_size)[: len(self)]:
            images = augment(self._images[chosen], shuffling.pad_crop, shuffling.flip, random)
            own = self._share.of_training(len(chosen))
            yield self._finished(images[own]), self._labels[chosen][own]

    def _finished(self, images: Tensor) -> Tensor:
        return resize(self._normalise(images), self._image_size)


def resize(images: Tensor, size: int | None) -> Tensor:
    """float32 [N, C, H, W] to [N, C, size, size], bilinear with antialiasing; None: as it is."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def smallest_batch(share: Share) -> int:
    """The fewest images that a training batch may have: two for BatchNorm, and one for each process."""
    return max(2, share.processes)


def number_of_batches(samples: int, batch_size: int, smallest: int) -> int:
    """Batches in an epoch; a last one of fewer than `smallest` images does not count."""
    full, rest = divmod(samples, batch_size)
    return full + (rest >= smallest)


def augment(images: Tensor, pad_crop: int, flip: bool, random: np.random.Generator) -> Tensor:
    """Each image shifted by up to `pad_crop` pixels, black coming in, and half of them mirrored.

    images: uint8 [N, C, H, W]. One gather does both for the whole batch: flipping only reverses
    the columns that the crop picks.
    """
    if not pad_crop and not flip:
        return images
    count, _, height, width = images.shape
    top, left = torch.from_numpy(random.integers(0, 2 * pad_crop, (2, count), endpoint=True))
    mirrored = torch.from_numpy(random.random(count) < (0.5 if flip else 0.0))
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, [pad_crop] * 4)
    return _gather(padded, rows.to(images.device), columns.to(images.device))


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of image n at rows[n] x columns[n]: [N, C, ., .] by [N, H] and [N, W]."""
    n = torch.arange(len(images), device=images.device)[:, None, None, None]
    c = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[n, c, rows[:, None, :, None], columns[:, None, None, :]]
