"""LeNet-5 (LeCun et al., Proc. IEEE 1998), with ReLU and max pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class LeNet5(nn.Module):
    """Images [N, in_channels, size, size], size 28 or 32, to logits [N, num_classes].

    batch_norm=False is the classic network. norm_first puts each BatchNorm but the first before
    its layer, over what that reads: the order of XNOR-Net (Rastegari et al., ECCV 2016).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        batch_norm: bool = True,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        if image_size not in (28, 32):
            raise ValueError(f"image_size is 28 or 32, not {image_size}")
        self.norm_first = norm_first
        norm2d = nn.BatchNorm2d if batch_norm else nn.Identity
        norm1d = nn.BatchNorm1d if batch_norm else nn.Identity
        bias = not batch_norm
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=(32 - image_size) // 2, bias=bias)
        self.bn1 = norm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=bias)
        self.bn2 = norm2d(6 if norm_first else 16)
        self.fc1 = nn.Linear(400, 120, bias=bias)
        self.bn3 = norm1d(400 if norm_first else 120)
        self.fc2 = nn.Linear(120, 84, bias=bias)
        self.bn4 = norm1d(120 if norm_first else 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = max_pool2d(self.activated(self.conv2, self.bn2, x), 2)
        x = torch.flatten(x, 1)
        x = self.activated(self.fc1, self.bn3, x)
        x = self.activated(self.fc2, self.bn4, x)
        logits: Tensor = self.fc3(x)
        return logits

    def activated(self, layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        y = layer(norm(x)) if self.norm_first else norm(layer(x))
        return torch.relu(y)


def lenet5(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    batch_norm: bool = True,
    norm_first: bool = False,
) -> LeNet5:
    """LeNet-5; batch_norm=False is the classic network, norm_first the order of XNOR-Net."""
    return LeNet5(num_classes, in_channels, image_size, batch_norm, norm_first)
