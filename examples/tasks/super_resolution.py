"""Photographs and the same at half of their size, for `dataset = "super_resolution.py:make"`; and ESPCN."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from qdeploy import datasets
from qdeploy.datasets.downloads import find_files


def make(root: Path, pictures="cifar10"):
    """Tensors in 0..1: images [N, C, H / 2, W / 2], whose pixels are means of four, and [N, C, H, W]."""
    dataset = datasets.find(pictures)
    train, test = dataset.read(*(find_files(dataset, root, download=False) or [root]))
    whole = (torch.tensor(part.images).float() / 255 for part in (train, test))
    return tuple((avg_pool2d(images, 2), images) for images in whole)


class ESPCN(nn.Module):
    """Shi et al., 1609.05158: convolutions at the small size, and a pixel shuffle at the end."""

    def __init__(self, channels=3, width=32):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.enlarge = nn.Sequential(
            nn.Conv2d(width, 4 * channels, 3, padding=1), nn.PixelShuffle(2)
        )

    def forward(self, x):
        return self.enlarge(self.features(x))
