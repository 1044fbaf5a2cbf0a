"""EfficientNet-B0 (Tan and Le, ICML 2019), without stochastic depth."""

from __future__ import annotations

from torch import nn

from qdeploy.models.mobilenet import (
    InvertedResidual,
    MobileNet,
    SqueezeExcite,
    conv_norm,
    eighths,
)

# Table 1: expansion, channels, blocks, stride of the first of them, kernel.
B0_STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


def efficientnet_b0(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> MobileNet:
    """EfficientNet-B0; 5,288,548 parameters at width 1 with 1000 classes.

    `width` multiplies every number of channels, rounded to multiples of 8.
    """
    blocks, inputs = [], eighths(32 * width)
    stem = conv_norm(in_channels, inputs, 3, 2, activation=nn.SiLU)
    for expansion, channels, repeats, stride, kernel in B0_STAGES:
        for step in (stride, *[1] * (repeats - 1)):
            outputs, middle = eighths(channels * width), inputs * expansion
            squeeze = SqueezeExcite(middle, inputs // 4, nn.SiLU, nn.Sigmoid)
            blocks.append(InvertedResidual(inputs, middle, outputs, kernel, step, nn.SiLU, squeeze))
            inputs = outputs
    features = eighths(1280 * width)
    last = conv_norm(inputs, features, activation=nn.SiLU)
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(features, num_classes))
    return MobileNet(stem, blocks, last, classifier)
