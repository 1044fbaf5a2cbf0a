"""Scenes: digits pasted on photographs, with their masks. A data set for `dataset = "scenes.py:make"`."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from qdeploy import datasets
from qdeploy.datasets.downloads import find_files

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CLASSES = ("background", *map(str, range(10)))


def make(root: Path, digits="mnist", pictures="cifar10", size=64, count=4000):
    """`count` scenes to train on and a quarter as many to test on."""
    parts = zip(
        images_of(digits, root), images_of(pictures, root), (count, count // 4), strict=True
    )
    train, test = (Scenes(*part, size, seed) for seed, part in enumerate(parts))
    return {"train": train, "test": test, "classes": CLASSES, "mean": MEAN, "std": STD}


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
        image, mask = self.scene(np.random.default_rng([self.seed, number]))
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        return torch.from_numpy((image - mean) / std), torch.from_numpy(mask)

    def scene(self, draw):
        """An image in 0..1, [3, size, size], and its mask."""
        picture = resized(self.pictures.images[draw.integers(len(self.pictures.images))], self.size)
        image = np.repeat(picture, 3 // len(picture), 0)
        mask = np.zeros((self.size, self.size), np.int64)
        for _ in range(draw.integers(1, 5)):
            which, side = draw.integers(len(self.digits.labels)), draw.integers(20, 33)
            top, left = draw.integers(0, self.size - side + 1, 2)
            ink = resized(self.digits.images[which], side)[0]
            place = np.s_[top : top + side, left : left + side]
            colour = draw.random(3, np.float32)[:, None, None]
            image[(slice(None), *place)] = ink * colour + (1 - ink) * image[(slice(None), *place)]
            mask[place] = np.where(ink > 0.5, self.digits.labels[which] + 1, mask[place])
        return image, mask


def resized(pixels, size):
    """uint8 [C, H, W] as 0..1, [C, size, size]."""
    given = torch.from_numpy(np.array(pixels, np.float32))[None] / 255
    return torch.nn.functional.interpolate(given, (size, size), mode="bilinear")[0].numpy()
