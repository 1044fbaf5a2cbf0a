"""Network in Network (Lin et al., ICLR 2014) with BatchNorm, as low-bit papers train it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """Convolution, BatchNorm, ReLU; norm_first: BatchNorm, convolution, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, norm_first: bool = False) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        self.norm = nn.BatchNorm2d(inputs if norm_first else outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            return torch.relu(self.conv(self.norm(x)))
        return torch.relu(self.norm(self.conv(x)))


class NIN(nn.Module):
    """The NIN of github.com/onion-rain/MCTS: images [N, in_channels, 32, 32] to [N, num_classes].

    674,910 parameters in either order.
    """

    def __init__(self, num_classes: int, in_channels: int, norm_first: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Layer(in_channels, 192, 5),
            Layer(192, 160, 1, norm_first),
            Layer(160, 96, 1, norm_first),
            nn.MaxPool2d(3, stride=2, padding=1),
            Layer(96, 192, 3, norm_first),
            Layer(192, 192, 1, norm_first),
            Layer(192, 192, 1, norm_first),
            nn.AvgPool2d(3, stride=2, padding=1),
            Layer(192, 192, 3, norm_first),
            Layer(192, 192, 1, norm_first),
            Layer(192, num_classes, 1),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.layers(x), 1)


def nin(num_classes: int = 10, in_channels: int = 3, norm_first: bool = False) -> NIN:
    """NIN; norm_first is the order of XNOR-Net, for all layers but the first and the last."""
    return NIN(num_classes, in_channels, norm_first)
