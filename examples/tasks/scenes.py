"""Scenes: digits pasted on photographs. `dataset = "scenes.py:make"` has their masks, `:make_boxes` boxes."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from qdeploy import datasets
from qdeploy.datasets.downloads import find_files

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CLASSES = ("background", *map(str, range(10)))


def make(root: Path, **options):
    """Scenes and the mask of each; options: see `parts`."""
    train, test = parts(Scenes, root, **options)
    return {"train": train, "test": test, "classes": CLASSES, "mean": MEAN, "std": STD}


def make_boxes(root: Path, **options):
    """Scenes and the boxes of their digits; options: see `parts`."""
    train, test = parts(BoxedScenes, root, **options)
    named = {"classes": CLASSES[1:], "mean": MEAN, "std": STD}
    return {"train": train, "test": test, "collate": listed, **named}


def parts(kind, root, digits="mnist", pictures="cifar10", size=64, count=4000):
    """`count` scenes to train on and a quarter as many to test on."""
    halves = zip(
        images_of(digits, root), images_of(pictures, root), (count, count // 4), strict=True
    )
    return (kind(*half, size, seed) for seed, half in enumerate(halves))


def listed(items):
    """A batch: images [N, 3, H, W], and a list of their targets, since images have any number of boxes."""
    images, targets = zip(*items, strict=True)
    return torch.stack(images), list(targets)


def images_of(name, root):
    """The training and the test images of a data set that qdeploy knows, with their labels."""
    dataset = datasets.find(name)
    return dataset.read(*(find_files(dataset, root, download=False) or [root]))


class Scenes(Dataset):
    """One to four digits of any size and colour on a picture; the mask has each pixel's class.

    A scene depends on its number alone, so that each epoch sees the same ones.
    """

    def __init__(self, digits, pictures, count, size, seed):
        self.digits, self.pictures = digits, pictures
        self.count, self.size, self.seed = count, size, seed

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        image, mask, _ = self.scene(number)
        return image, torch.from_numpy(mask)

    def scene(self, number):
        """A normalised image, [3, size, size], its mask, and the box and the digit of all that lies there."""
        draw = np.random.default_rng([self.seed, number])
        picture = resized(self.pictures.images[draw.integers(len(self.pictures.images))], self.size)
        image = np.repeat(picture, 3 // len(picture), 0)
        mask, found = np.zeros((self.size, self.size), np.int64), []
        for _ in range(draw.integers(1, 5)):
            which, side = draw.integers(len(self.digits.labels)), draw.integers(20, 33)
            top, left = draw.integers(0, self.size - side + 1, 2)
            ink = resized(self.digits.images[which], side)[0]
            place = np.s_[top : top + side, left : left + side]
            colour = draw.random(3, np.float32)[:, None, None]
            image[(slice(None), *place)] = ink * colour + (1 - ink) * image[(slice(None), *place)]
            digit, inked = int(self.digits.labels[which]), ink > 0.5
            mask[place] = np.where(inked, digit + 1, mask[place])
            found.append((box_of(inked) + np.array([left, top, left, top]), digit))
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        return torch.from_numpy((image - mean) / std), mask, found


class BoxedScenes(Scenes):
    """The same scenes; the targets are {"boxes": float32 [n, 4], "labels": int64 [n]}.

    A box is left, top, right and bottom, in pixels, around a digit's ink, also where another one covers it.
    """

    def __getitem__(self, number):
        image, _, found = self.scene(number)
        boxes, digits = zip(*found, strict=True)
        return image, {
            "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
            "labels": torch.tensor(digits),
        }


def box_of(inked):
    """Left, top, right and bottom of what is True, bool [H, W]; right and bottom lie outside of it."""
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def resized(pixels, size):
    """uint8 [C, H, W] as 0..1, [C, size, size]."""
    given = torch.from_numpy(np.array(pixels, np.float32))[None] / 255
    return torch.nn.functional.interpolate(given, (size, size), mode="bilinear")[0].numpy()
