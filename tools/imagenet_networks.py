"""Networks for images of 224x224 as published, in plain PyTorch.

Parameters, as torchvision's networks have them: MobileNetV2 3,504,872; MobileNetV3-small 2,542,856;
EfficientNet-B0 5,288,548; ViT-B/16 86,567,656.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Sandler et al., CVPR 2018, table 2: expansion, channels, repeats, stride of the first.
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
# Howard et al., ICCV 2019, table 2: kernel, expanded, channels, squeeze, hardswish, stride.
MOBILENET_V3_SMALL = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip
# Tan and Le, ICML 2019, table 1: expansion, channels, repeats, stride of the first, kernel.
EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


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


class InvertedResidual(nn.Module):
    """Expand, depthwise, [squeeze and excite,] project; added to the input if shapes agree."""

    def __init__(
        self,
        inputs: int,
        wide: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: SqueezeExcite | None = None,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if wide != inputs:
            parts.append(conv_norm(inputs, wide, 1, activation=activation))
        parts.append(conv_norm(wide, wide, kernel, stride, wide, activation))
        if squeeze:
            parts.append(squeeze)
        parts.append(conv_norm(wide, outputs, 1))
        self.block = nn.Sequential(*parts)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.added else self.block(x)


def mobilenet_v2(num_classes: int = 1000) -> nn.Module:
    """Logits [N, num_classes] of images [N, 3, 224, 224]."""
    blocks, inputs = [], 32
    for expansion, outputs, repeats, stride in MOBILENET_V2:
        for step in (stride, *[1] * (repeats - 1)):
            wide = inputs * expansion
            blocks.append(InvertedResidual(inputs, wide, outputs, 3, step, nn.ReLU6))
            inputs = outputs
    return nn.Sequential(
        conv_norm(3, 32, 3, 2, activation=nn.ReLU6),
        *blocks,
        conv_norm(320, 1280, 1, activation=nn.ReLU6),
        *_classifier(nn.Dropout(0.2), nn.Linear(1280, num_classes)),
    )


def mobilenet_v3_small(num_classes: int = 1000) -> nn.Module:
    """Logits [N, num_classes] of images [N, 3, 224, 224]."""
    blocks, inputs = [], 16
    for kernel, wide, outputs, squeezes, hard, stride in MOBILENET_V3_SMALL:
        activation = nn.Hardswish if hard else nn.ReLU
        squeeze = SqueezeExcite(wide, _eighths(wide / 4), nn.ReLU, nn.Hardsigmoid)
        blocks.append(
            InvertedResidual(
                inputs, wide, outputs, kernel, stride, activation, squeeze if squeezes else None
            )
        )
        inputs = outputs
    return nn.Sequential(
        conv_norm(3, 16, 3, 2, activation=nn.Hardswish),
        *blocks,
        conv_norm(96, 576, 1, activation=nn.Hardswish),
        *_classifier(
            nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, num_classes)
        ),
    )


def _eighths(channels: float) -> int:
    """The next multiple of 8, not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def efficientnet_b0(num_classes: int = 1000) -> nn.Module:
    """Logits [N, num_classes] of images [N, 3, 224, 224]; without stochastic depth."""
    blocks, inputs = [], 32
    for expansion, outputs, repeats, stride, kernel in EFFICIENTNET_B0:
        for step in (stride, *[1] * (repeats - 1)):
            wide = inputs * expansion
            squeeze = SqueezeExcite(wide, inputs // 4, nn.SiLU, nn.Sigmoid)
            blocks.append(InvertedResidual(inputs, wide, outputs, kernel, step, nn.SiLU, squeeze))
            inputs = outputs
    return nn.Sequential(
        conv_norm(3, 32, 3, 2, activation=nn.SiLU),
        *blocks,
        conv_norm(320, 1280, 1, activation=nn.SiLU),
        *_classifier(nn.Dropout(0.2), nn.Linear(1280, num_classes)),
    )


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


def _classifier(*layers: nn.Module) -> Iterable[nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers


class EncoderBlock(nn.Module):
    """Attention and MLP, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., ICLR 2021): patches and a class token through encoder blocks."""

    def __init__(
        self, size: int, patch: int, width: int, depth: int, heads: int, num_classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        places = (size // patch) ** 2 + 1
        self.positions = nn.Parameter(0.02 * torch.randn(1, places, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_b16(num_classes: int = 1000) -> nn.Module:
    """Logits [N, num_classes] of images [N, 3, 224, 224]."""
    return VisionTransformer(224, 16, 768, 12, 12, num_classes)
