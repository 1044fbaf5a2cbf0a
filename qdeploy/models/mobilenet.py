"""MobileNetV2 (Sandler et al., CVPR 2018) and MobileNetV3-small (Howard et al., ICCV 2019).

`width` multiplies every number of channels, rounded to multiples of 8 as the papers' code does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qdeploy.models.resnet import initialise

# Table 2 of MobileNetV2: expansion, channels, blocks, stride of the first of them.
V2_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
# Table 2 of MobileNetV3: kernel, channels inside, channels, with squeeze, with hardswish, stride.
V3_SMALL_BLOCKS = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip


class MobileNet(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, num_classes]; the blocks halve H and W five times."""

    def __init__(
        self, stem: nn.Module, blocks: Iterable[nn.Module], last: nn.Module, classifier: nn.Module
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.last = last
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.last(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite if given, project; added to the input if shapes agree."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: nn.Module | None = None,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if middle != inputs:
            parts.append(conv_norm(inputs, middle, activation=activation))
        parts.append(conv_norm(middle, middle, kernel, stride, middle, activation))
        if squeeze:
            parts.append(squeeze)
        self.layers = nn.Sequential(*parts, conv_norm(middle, outputs))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


class SqueezeExcite(nn.Module):
    """Each channel times a gate that all channels decide on (Hu et al., CVPR 2018)."""

    def __init__(
        self, channels: int, squeezed: int, activation: type[nn.Module], gate: type[nn.Module]
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution, BatchNorm, and the activation if there is one."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([activation()] if activation else []))


def eighths(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> MobileNet:
    """MobileNetV2; 3,504,872 parameters at width 1 with 1000 classes."""
    blocks, inputs = [], eighths(32 * width)
    stem = conv_norm(in_channels, inputs, 3, 2, activation=nn.ReLU6)
    for expansion, channels, repeats, stride in V2_STAGES:
        for step in (stride, *[1] * (repeats - 1)):
            outputs, middle = eighths(channels * width), inputs * expansion
            blocks.append(InvertedResidual(inputs, middle, outputs, 3, step, nn.ReLU6))
            inputs = outputs
    features = eighths(1280 * max(1.0, width))
    last = conv_norm(inputs, features, activation=nn.ReLU6)
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(features, num_classes))
    return MobileNet(stem, blocks, last, classifier)


def mobilenet_v3_small(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0
) -> MobileNet:
    """MobileNetV3-small; 2,542,856 parameters at width 1 with 1000 classes."""
    blocks, inputs = [], eighths(16 * width)
    stem = conv_norm(in_channels, inputs, 3, 2, activation=nn.Hardswish)
    for kernel, inside, channels, squeezes, hard, stride in V3_SMALL_BLOCKS:
        middle, outputs = eighths(inside * width), eighths(channels * width)
        activation = nn.Hardswish if hard else nn.ReLU
        gate = SqueezeExcite(middle, eighths(middle / 4), nn.ReLU, nn.Hardsigmoid)
        squeeze = gate if squeezes else None
        blocks.append(
            InvertedResidual(inputs, middle, outputs, kernel, stride, activation, squeeze)
        )
        inputs = outputs
    last = conv_norm(inputs, 6 * inputs, activation=nn.Hardswish)
    features = eighths(1024 * width)
    classifier = nn.Sequential(
        nn.Linear(6 * inputs, features),
        *(nn.Hardswish(), nn.Dropout(0.2)),
        nn.Linear(features, num_classes),
    )
    return MobileNet(stem, blocks, last, classifier)
