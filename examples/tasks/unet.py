"""A small U-Net: four levels, BatchNorm, nearest upsampling."""

import torch
from torch import nn


def block(inputs, outputs):
    layers = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    def __init__(self, classes=11, width=8):
        super().__init__()
        self.down1, self.down2 = block(3, width), block(width, 2 * width)
        self.down3, self.down4 = block(2 * width, 4 * width), block(4 * width, 8 * width)
        self.up3, self.up2 = block(12 * width, 4 * width), block(6 * width, 2 * width)
        self.up1 = block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.down3(self.pool(b))
        d = self.down4(self.pool(c))
        c = self.up3(torch.cat([self.grow(d), c], 1))
        b = self.up2(torch.cat([self.grow(c), b], 1))
        return self.head(self.up1(torch.cat([self.grow(b), a], 1)))
