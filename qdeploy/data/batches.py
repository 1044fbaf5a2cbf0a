"""Batches of images: what an epoch is, and batches of data sets that fit on the device."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.errors import QdeployError
from qdeploy.pictures.preprocessing import in_pixels, normalised
from qdeploy.recipe import DataSection

# Inputs, a tensor or a tuple of them, and the targets as the data set has them.
Batch = tuple[Any, Any]


@dataclass(frozen=True)
class Share:
    """The part of each batch that process `rank` of `processes` takes."""

    rank: int = 0
    processes: int = 1


WHOLE = Share()


class Batches(ABC):
    """A data set in batches.

    samples  number of images
    section  the recipe's [data]; each epoch is as in the phase of the regime that it begins in
    seed     of training, which has a new order each epoch; None: of testing, in order
    share    what this process takes of each batch
    """

    def __init__(
        self, samples: int, section: DataSection, seed: int | None, share: Share = WHOLE
    ) -> None:
        self.samples = samples
        self._seed = seed
        self._share = share
        self._follow(section)

    def _follow(self, section: DataSection) -> None:
        processes = self._share.processes
        for phase in section.phases():
            if self._seed is not None and phase.batch_size % processes:
                raise QdeployError(
                    f"data.batch_size {phase.batch_size} cannot be shared out evenly to {processes} "
                    f"processes: choose a multiple of {processes}, or another number of devices"
                )
        self._section = section
        self._first_steps = [0]  # of each epoch, as far as they were asked for

    def under(self, section: DataSection) -> Self:
        """The same images, batched and augmented as another [data] says.

        Raises QdeployError if the processes cannot share out its batches.
        """
        other = copy.copy(self)  # the images on the device are shared
        other._follow(section)
        return other

    def shortened(self, samples: int) -> Self:
        """The first so many samples of a test set, or all where it has fewer.

        They are counted before a collate function makes batches of them: of what it makes, nobody but
        it knows how to take a part.
        """
        other = copy.copy(self)
        other.samples = min(samples, self.samples)
        other._first_steps = [0]
        return other

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one input before the first phase of the regime, [C, H, W] of an image."""

    @abstractmethod
    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch `index`, on the device, which depend on it and on the seed alone.

        Of our own data sets images float32 [N, C, H, W], normalised, and labels int64 [N].
        """

    def steps_before(self, index: int) -> int:
        """Number of batches in all epochs before epoch `index`."""
        for epoch in range(len(self._first_steps) - 1, index):
            first = self._first_steps[epoch]
            self._first_steps.append(first + self._steps(self._section.at(epoch, first)))
        return self._first_steps[index]

    def _steps(self, section: DataSection) -> int:
        # A training batch has two images for BatchNorm, and one for each process.
        smallest = 1 if self._seed is None else max(2, self._share.processes)
        return number_of_batches(self.samples, section.batch_size, smallest)

    def _phase(self, index: int) -> DataSection:
        return self._section.at(index, self.steps_before(index))

    def _random(self, index: int) -> np.random.Generator | None:
        """What draws the random part of a training epoch, for all devices and processes the same."""
        return None if self._seed is None else np.random.default_rng([self._seed, index])

    def _chosen(
        self, section: DataSection, random: np.random.Generator | None
    ) -> tuple[Tensor, ...]:
        """The numbers of the images in each batch."""
        order = np.arange(self.samples) if random is None else random.permutation(self.samples)
        whole = torch.from_numpy(order[: self._steps(section) * section.batch_size])
        return whole.split(section.batch_size)

    def _own(self, batch: Tensor) -> Tensor:
        """This process's share of a batch; that of a test batch may be empty.

        In training all processes take the same number, so that the mean of their gradients is the
        gradient of the batch: the last images, which cannot be shared out evenly, are left out.
        """
        rank, processes = self._share.rank, self._share.processes
        left_out = 0 if self._seed is None else len(batch) % processes
        return batch[rank : len(batch) - left_out : processes]


class Normalisation:
    """(pixel / 255 - mean) / std per channel.

    Images are stored channels last: the convolutions of ResNet-20 then train up to 1.5 times as
    fast on a CPU, those of LeNet-5 as fast as before.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        in_0_to_255 = (torch.from_numpy(part).to(device) for part in in_pixels(mean, std))
        self._mean, self._std = (part.reshape(1, -1, 1, 1) for part in in_0_to_255)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to float32."""
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        return normalised(pixels, self._mean, self._std)

    def pixels(self, images: Tensor) -> Tensor:
        """The uint8 pixels of normalised images, rounded where resizing left fractions."""
        return (images * self._std + self._mean).round().clamp(0, 255).to(torch.uint8)


class ArrayBatches(Batches):
    """A whole data set as uint8 on the device, augmented there a batch at a time.

    Images are resized after the augmentation. Random numbers are drawn on the CPU, by NumPy, and
    for whole batches: all devices see the same batches, and any number of processes can share them.
    """

    def __init__(
        self,
        data: LabelledImages,
        section: DataSection,
        normalise: Normalisation,
        seed: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        super().__init__(len(data.labels), section, seed, share)
        # A copy, because arrays that view a file's bytes are read-only.
        self._images = torch.tensor(data.images, device=normalise.device)
        self._labels = torch.tensor(data.labels, device=normalise.device)
        self._normalise = normalise

    @property
    def input_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self._images.shape
        size = self._section.image_size
        return channels, size or height, size or width

    def epoch(self, index: int) -> Iterator[Batch]:
        section, random = self._phase(index), self._random(index)
        for batch in self._chosen(section, random):
            chosen = batch.to(self._images.device)
            images, labels = self._images[chosen], self._own(self._labels[chosen])
            if random is not None:
                images = augment(images, section.pad_crop, bool(section.flip), random)
            if len(labels):
                yield resize(self._normalise(self._own(images)), section.image_size), labels


def resize(images: Tensor, size: int | None) -> Tensor:
    """float32 [N, C, H, W] to [N, C, size, size], bilinear with antialiasing; None: as it is."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


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
    n, y, x = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    # Indices on both sides of a slice put what it holds, the channels, last.
    n, y, x = (index.to(images.device) for index in (n, y, x))
    return padded[n, :, y, x].permute(0, 3, 1, 2)
