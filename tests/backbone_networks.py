"""A network as people write them, of a backbone and a head, prepared by every method and trained a little."""

import torch
import torch.nn.functional as F
from networks import awkward_norms, images
from torch import nn

import qdeploy

METHODS = [
    ("simqat", 8, 8), ("lsq", 4, 4), ("pact", 4, 4), ("slb", 1, 8), ("slb", 2, 8), ("dorefa", 2, 2),
    ("xnor", 1, 8), ("ternary", 2, 8), ("int8_training", 8, 8),
]  # fmt: skip


class Block(nn.Module):
    """A shortcut, a norm, a ReLU module, and a dropout that is a function."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.relu(F.dropout(self.bn(self.conv(x)), 0.1, self.training) * self.gain + x)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layer1 = nn.Conv2d(3, 7, 3, padding=1), nn.Sequential(Block(7), Block(7))

    def forward(self, x):
        return self.layer1(F.relu(self.stem(x)))


class Net(nn.Module):
    """A backbone and a head, the usual methods of people's networks, and a layer that nothing calls."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head, self.projector = Backbone(), nn.Linear(7, 4), nn.Linear(7, 3)
        self.norm, self.config = nn.BatchNorm1d(7), {"classes": 4}

    def forward(self, x):
        return self.head(self.norm(self.backbone(x).mean((2, 3))))

    def freeze_backbone(self):
        return self.backbone.eval().requires_grad_(False)

    @property
    def depth(self):
        return len(self.backbone.layer1)


def net(seed=0):
    torch.manual_seed(seed)
    return awkward_norms(Net(), seed)


def prepared_of(network=None, method="simqat", bits=8, acts=8, **options):
    network = net() if network is None else network
    return qdeploy.prepare(network, images(2), method, bits, acts, **options)


def train(prepared, steps=2):
    optimizer = torch.optim.SGD([p for p in prepared.parameters() if p.requires_grad], 0.05)
    for step in range(steps):
        optimizer.zero_grad()
        prepared(images(4, seed=step)).square().mean().backward()
        optimizer.step()
