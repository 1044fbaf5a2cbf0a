"""Networks that compute with the sizes of their tensors, and files of them in ONNX Runtime."""

import functools
import math

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from networks import Network, conv_norm_relu
from torch import nn

import qdeploy

SIZES = [(16, 16), (12, 8), (20, 28)]  # the example's, a smaller and a larger one


def images(height=16, width=16, batch=2, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def resized(self, x):
    """A U-Net's skip connection."""
    y = self.deep(F.max_pool2d(x := self.stem(x), 2))
    return self.last(torch.cat([F.interpolate(y, size=x.shape[2:], mode="bilinear"), x], 1))


def tokens(self, x):
    """Attention over all pixels."""
    n, c, h, w = (y := self.stem(x)).shape
    t = y.view(n, c, h * w).transpose(1, 2)
    t = t + F.scaled_dot_product_attention(self.q(t), self.q(t), self.v(t))
    return self.last(torch.cat([t.transpose(1, 2).reshape(n, c, h, w), y], 1))


def pooled(self, x):
    return self.head(F.adaptive_avg_pool2d(self.stem(x), 1).flatten(1))


def same(self, x):
    """Padded as TensorFlow does, by what rounds up."""
    h, w = x.shape[-2:]
    down, right = (max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (h, w))
    return self.strided(F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2]))


def windows(self, x):
    """Two by two pixels become channels."""
    n, c, h, w = (y := self.stem(x)).shape
    y = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return self.merged(y.reshape(n, 4 * c, h // 2, w // 2))


FORWARDS = [resized, tokens, pooled, same, windows]


@functools.cache
def layers():
    torch.manual_seed(0)
    return {
        "stem": conv_norm_relu(3, 6),
        "deep": conv_norm_relu(6, 6),
        "last": nn.Conv2d(12, 4, 1),
        "q": nn.Linear(6, 6),
        "v": nn.Linear(6, 6),
        "head": nn.Linear(6, 5),
        "strided": nn.Conv2d(3, 5, 3, stride=2),
        "merged": nn.Conv2d(24, 5, 1),
    }


def network(forward):
    """With the layers that it uses."""
    names = forward.__code__.co_names
    return Network(forward, **{k: v for k, v in layers().items() if k in names}).eval()


def converted(forward, *settings, x=None):
    x = images() if x is None else x
    prepared = qdeploy.prepare(network(forward), x, *(settings or ("simqat",)))
    qdeploy.calibrate(prepared, [x, images(20, 28)])
    return qdeploy.convert(prepared)


def session_of(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def run(session, *inputs):
    names = [one.name for one in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


def distance(found, expected):
    """As a share of the expected size."""
    return math.sqrt(np.square(found - expected).sum() / np.square(expected).sum())
