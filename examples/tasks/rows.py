"""Digits read row by row, as a sensor gives its values: a data set of sequences, and a network over time."""

from pathlib import Path

import torch
from torch import nn

from qdeploy import datasets
from qdeploy.datasets.downloads import find_files


def make(root: Path, digits="mnist"):
    """Sequences [N, columns, rows], a row at each moment, and the digit of each."""
    dataset = datasets.find(digits)
    parts = dataset.read(*(find_files(dataset, root, download=False) or [root]))
    train, test = (
        (
            torch.tensor(part.images[:, 0]).float().transpose(1, 2) / 127.5 - 1,
            torch.tensor(part.labels),
        )
        for part in parts
    )
    return {"train": train, "test": test, "classes": [str(digit) for digit in range(10)]}


class TCN(nn.Module):
    """Bai et al., 1803.01271, in small: dilated convolutions over time, each with a shortcut around it."""

    def __init__(self, values=28, classes=10, width=32):
        super().__init__()
        self.stem = nn.Conv1d(values, width, 1)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            )
            for dilation in (1, 2, 4)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for level in self.levels:
            x = x + level(x)
        return self.head(x.mean(2))
