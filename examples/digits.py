"""What the examples share: scikit-learn's handwritten digits, and a small network trained on them.

Nothing is downloaded. In your own code, your data and your trained network stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset

Classifier = Callable[[Tensor], Tensor]  # images to logits


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,437 digits to train on and 360 to test: float32 images [N, 1, 16, 16] in -1..1, labels [N]."""
    scans, labels = load_digits(return_X_y=True)
    images = torch.tensor(scans / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = interpolate(images, size=(16, 16), mode="bilinear")
    train, test = train_test_split(
        range(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    labels = torch.tensor(labels)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def batches(data: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of 64, the incomplete last one left out."""
    return DataLoader(data, batch_size=64, shuffle=True, drop_last=True)


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class SmallNet(nn.Module):
    """A residual network in miniature: images [N, 1, 16, 16] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(1, 16, stride=2)
        self.block = nn.Sequential(layer(16, 16), layer(16, 16))
        self.down = layer(16, 64, stride=2)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.down(x + self.block(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def pretrained(network: nn.Module, train: TensorDataset, epochs: int = 5) -> nn.Module:
    """The float network after a few epochs: the stand-in for one that you have trained."""
    loader = batches(train)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    return network


def in_onnxruntime(file: str | Path) -> Classifier:
    """The file as a function of images."""
    session = onnxruntime.InferenceSession(file)
    return lambda images: torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


@torch.no_grad()
def top1(classifier: Classifier, data: TensorDataset) -> float:
    """Share of the images that it puts into their class."""
    images, labels = data.tensors
    return (classifier(images).argmax(1) == labels).float().mean().item()


def compared(network: nn.Module, trained: nn.Module, file: str | Path, test: TensorDataset) -> str:
    """Top-1 of the float network, of the one trained from it, and of the file."""
    shares = (
        top1(network.eval(), test),
        top1(trained.eval(), test),
        top1(in_onnxruntime(file), test),
    )
    return "top-1: float {:.2%}, trained {:.2%}, file {:.2%}".format(*shares)
