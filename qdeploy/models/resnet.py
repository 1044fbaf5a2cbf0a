"""Residual networks (He et al., CVPR 2016), the ImageNet and the CIFAR-10 kind.

norm_first puts each BatchNorm of a block before its convolution, over what that reads: the order
of XNOR-Net (Rastegari et al., ECCV 2016). Stem, shortcuts, additions and ReLUs stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class ResNet(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, num_classes]."""

    def __init__(
        self, stem: nn.Module, blocks: Iterable[nn.Module], channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layers = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layers(self.stem(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int,
        shortcut: nn.Module,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv1 = conv3x3(inputs, middle, stride)
        self.bn1 = norm_of(self.conv1, norm_first)
        self.conv2 = conv3x3(middle, outputs)
        self.bn2 = norm_of(self.conv2, norm_first)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            y = torch.relu(self.conv1(self.bn1(x)))
            y = self.conv2(self.bn2(y))
        else:
            y = torch.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 has the stride."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int,
        shortcut: nn.Module,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv1 = conv1x1(inputs, middle)
        self.bn1 = norm_of(self.conv1, norm_first)
        self.conv2 = conv3x3(middle, middle, stride)
        self.bn2 = norm_of(self.conv2, norm_first)
        self.conv3 = conv1x1(middle, outputs)
        self.bn3 = norm_of(self.conv3, norm_first)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            y = torch.relu(self.conv1(self.bn1(x)))
            y = torch.relu(self.conv2(self.bn2(y)))
            y = self.conv3(self.bn3(y))
        else:
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
        return torch.relu(y + self.shortcut(x))


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def norm_of(conv: nn.Conv2d, norm_first: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(conv.in_channels if norm_first else conv.out_channels)


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class Padding(nn.Module):
    """Every second pixel in both directions, and zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.behind = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return pad(x, (0, 0, 0, 0, self.before, self.behind))


def stages(
    block: type[BasicBlock] | type[Bottleneck],
    shortcut: Callable[[int, int, int], nn.Module],
    inputs: int,
    shapes: Iterable[tuple[int, int, int]],
    norm_first: bool,
) -> Iterable[nn.Module]:
    """The blocks of stages given as (blocks, middle, outputs); all but the first halve the image.

    shortcut(inputs, outputs, stride) makes the shortcut of a block that changes the shape.
    """
    for stage, (blocks, middle, outputs) in enumerate(shapes):
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            same = stride == 1 and inputs == outputs
            beside = nn.Identity() if same else shortcut(inputs, outputs, stride)
            yield block(inputs, middle, outputs, stride, beside, norm_first)
            inputs = outputs


def cifar_stem(in_channels: int, channels: int = 64) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_channels, channels), nn.BatchNorm2d(channels), nn.ReLU())


def imagenet_stem(in_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))


STEMS = {"cifar": cifar_stem, "imagenet": imagenet_stem}


def stem_of(name: str, in_channels: int) -> nn.Sequential:
    """The stem "cifar", for images of 32 pixels, is a 3x3 convolution; "imagenet", for 224, is a 7x7
    convolution with stride 2 and max pooling."""
    if name not in STEMS:
        raise ValueError(f"stem is one of {', '.join(STEMS)}, not {name!r}")
    return STEMS[name](in_channels)


def initialise(network: nn.Module) -> None:
    """He-normal convolutions (He et al., ICCV 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(
    num_classes: int = 10, in_channels: int = 3, stem: str = "cifar", norm_first: bool = False
) -> ResNet:
    """ResNet-18; stem "cifar" or "imagenet"."""
    shapes = [(2, 64, 64), (2, 128, 128), (2, 256, 256), (2, 512, 512)]
    blocks = stages(BasicBlock, projection, 64, shapes, norm_first)
    return ResNet(stem_of(stem, in_channels), blocks, 512, num_classes)


def resnet50(
    num_classes: int = 10, in_channels: int = 3, stem: str = "cifar", norm_first: bool = False
) -> ResNet:
    """ResNet-50; stem "cifar" or "imagenet"."""
    shapes = [(3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048)]
    blocks = stages(Bottleneck, projection, 64, shapes, norm_first)
    return ResNet(stem_of(stem, in_channels), blocks, 2048, num_classes)


def resnet20(num_classes: int = 10, in_channels: int = 3, norm_first: bool = False) -> ResNet:
    """The wide ResNet-20 of github.com/onion-rain/MCTS, for images of 32 pixels.

    The second convolution of a block widens, and shortcuts are bare 1x1 convolutions: 1,110,522
    parameters.
    """
    shapes = [(3, 16, 64), (3, 32, 128), (3, 64, 256)]
    blocks = stages(BasicBlock, conv1x1, 16, shapes, norm_first)
    return ResNet(cifar_stem(in_channels, 16), blocks, 256, num_classes)


def resnet20s(num_classes: int = 10, in_channels: int = 3, norm_first: bool = False) -> ResNet:
    """The small ResNet-20 of He et al., for images of 32 pixels; its shortcuts have no parameters.

    269,722 parameters in all.
    """
    shapes = [(3, 16, 16), (3, 32, 32), (3, 64, 64)]
    blocks = stages(BasicBlock, Padding, 16, shapes, norm_first)
    return ResNet(cifar_stem(in_channels, 16), blocks, 64, num_classes)
