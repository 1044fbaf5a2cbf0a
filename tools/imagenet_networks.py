"""MobileNetV2 and EfficientNet-B0 as published, in plain PyTorch, for images of 224x224.

Parameters and products for one image, as torchvision's networks have them: 3,504,872 and
300,774,272; 5,288,548 and 385,814,752.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

# Sandler et al., CVPR 2018, table 2: expansion, channels, repeats, stride of the first.
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
# Tan and Le, ICML 2019, table 1: expansion, channels, repeats, stride of the first, kernel.
EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


class SqueezeExcite(nn.Module):
    """Each channel times a gate that all channels decide on (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, [squeeze and excite,] project; added to the input if shapes agree."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        kernel: int,
        activation: type[nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        parts: list[nn.Module] = []
        if expansion != 1:
            parts.append(conv_norm(inputs, wide, 1, activation=activation))
        parts.append(conv_norm(wide, wide, kernel, stride, wide, activation))
        if squeeze:
            parts.append(SqueezeExcite(wide, max(1, inputs // 4)))
        parts.append(conv_norm(wide, outputs, 1))
        self.block = nn.Sequential(*parts)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.added else self.block(x)


def mobilenet_v2(num_classes: int = 1000) -> nn.Module:
    """Logits [N, num_classes] of images [N, 3, 224, 224]."""

    def blocks() -> Iterator[nn.Module]:
        inputs = 32
        for expansion, outputs, repeats, stride in MOBILENET_V2:
            for step in (stride, *[1] * (repeats - 1)):
                yield InvertedResidual(inputs, outputs, expansion, step, 3, nn.ReLU6, False)
                inputs = outputs

    return _classifier(nn.ReLU6, blocks(), num_classes)


def efficientnet_b0(num_classes: int = 1000) -> nn.Module:
    """Logits [N, num_classes] of images [N, 3, 224, 224]; without stochastic depth."""

    def blocks() -> Iterator[nn.Module]:
        inputs = 32
        for expansion, outputs, repeats, stride, kernel in EFFICIENTNET_B0:
            for step in (stride, *[1] * (repeats - 1)):
                yield InvertedResidual(inputs, outputs, expansion, step, kernel, nn.SiLU, True)
                inputs = outputs

    return _classifier(nn.SiLU, blocks(), num_classes)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([activation()] if activation else []))


def _classifier(
    activation: type[nn.Module], blocks: Iterator[nn.Module], num_classes: int
) -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 32, 3, 2, activation=activation),
        *blocks,
        conv_norm(320, 1280, 1, activation=activation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(1280, num_classes),
    )
