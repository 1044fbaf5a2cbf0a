"""LeNet-5 (LeCun et al., Proc. IEEE 1998), with ReLU and maximum pooling."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet5(nn.Module):
    """Images [N, in_channels, size, size] with size 28 or 32 to logits [N, num_classes].

    batch_norm=False is the classic network, whose layers have biases instead.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if image_size not in (28, 32):
            raise ValueError(f"LeNet-5 takes images of 28 or 32 pixels, not {image_size}")
        padding = (32 - image_size) // 2

        def norm2d(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

        def norm1d(features: int) -> nn.Module:
            return nn.BatchNorm1d(features) if batch_norm else nn.Identity()

        bias = not batch_norm
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=padding, bias=bias),
            norm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, bias=bias),
            norm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(400, 120, bias=bias),
            norm1d(120),
            nn.ReLU(),
            nn.Linear(120, 84, bias=bias),
            norm1d(84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


def lenet5(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, batch_norm: bool = True
) -> LeNet5:
    """LeNet-5 for images of 28 or 32 pixels."""
    return LeNet5(num_classes, in_channels, image_size, batch_norm)
