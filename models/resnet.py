"""Residual networks (He et al., CVPR 2016): ResNet-18, and the narrow ResNet-20 for CIFAR-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, num_classes].

    stem   "cifar": a 3x3 convolution, for images of 32 pixels; "imagenet": a 7x7 convolution with
           stride 2 and a pooling by maximum, for 224
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, stem: str = "cifar") -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem is one of {', '.join(STEMS)}, not {stem!r}")
        self.stem = STEMS[stem](in_channels)
        self.layers = nn.Sequential(
            *stage(64, 64, 1), *stage(64, 128, 2), *stage(128, 256, 2), *stage(256, 512, 2)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layers(self.stem(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


def cifar_stem(in_channels: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_channels, 64), nn.BatchNorm2d(64), nn.ReLU())


def imagenet_stem(in_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))


STEMS = {"cifar": cifar_stem, "imagenet": imagenet_stem}


def stage(inputs: int, outputs: int, stride: int) -> list[BasicBlock]:
    return [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]


class WideningBlock(nn.Module):
    """The second convolution widens; a stage's first block has a bare 1x1 for a shortcut."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, middle, stride)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """The ResNet-20 of github.com/onion-rain/MCTS: images [N, 3, 32, 32] to [N, num_classes].

    Three stages of three blocks, 16, 32 and 64 wide inside and four times that between them:
    1,110,522 parameters, 159,951,370 multiply-accumulates.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(in_channels, 16), nn.BatchNorm2d(16), nn.ReLU())
        blocks, inputs = [], 16
        for middle, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(3):
                blocks.append(
                    WideningBlock(inputs, middle, 4 * middle, stride if index == 0 else 1)
                )
                inputs = 4 * middle
        self.layers = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layers(self.stem(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


def initialise(network: nn.Module) -> None:
    """He-normal convolutions (He et al., ICCV 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(num_classes: int = 10, in_channels: int = 3, stem: str = "cifar") -> ResNet18:
    """ResNet-18; stem "cifar" or "imagenet"."""
    return ResNet18(num_classes, in_channels, stem)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet20:
    """The wide ResNet-20 of the seed; see the class."""
    return ResNet20(num_classes, in_channels)
