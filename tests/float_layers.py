"""Float layers with a BatchNorm that has negative, dead and odd channels; shared by these tests."""

import torch
from torch import nn

DEAD_SHIFT = 0.37  # 0 would hide a wrong bias, 0.5 sits on a rounding tie

CASES = {
    "conv2d": (lambda: nn.Conv2d(3, 5, 3, padding=1, bias=False), (3, 7, 7)),
    "conv2d-bias": (lambda: nn.Conv2d(3, 7, (1, 3), stride=2), (3, 9, 8)),
    "conv2d-groups": (lambda: nn.Conv2d(6, 9, 3, groups=3, dilation=2, padding=2), (6, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5, stride=(1, 2), bias=False), (5, 6, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 11)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (2, 3, 1), stride=(1, 2, 1), groups=2), (4, 3, 5, 3)),
    "linear": (lambda: nn.Linear(11, 5), (11,)),
    "linear-no-bias": (lambda: nn.Linear(7, 3, bias=False), (7,)),
}


def norm_for(layer, seed=0, momentum=0.3):
    """A BatchNorm with statistics of its own, gain < 0 in channel 0 and 0 in channel 1."""
    kinds = {nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    kind = kinds.get(type(layer), nn.BatchNorm1d)
    out = layer.weight.shape[0]
    norm = kind(out, momentum=momentum)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(out, generator=random) + 0.5)
        norm.weight[0], norm.weight[1] = -0.8, 0.0
        norm.bias.copy_(torch.randn(out, generator=random) * 0.3)
        norm.bias[1] = DEAD_SHIFT
        norm.running_mean.copy_(torch.randn(out, generator=random) * 0.5)
        norm.running_var.copy_(torch.rand(out, generator=random) * 2 + 0.3)
    return norm


def build(case, seed=0):
    """(float layer, its BatchNorm, a batch of inputs), always the same for a seed."""
    torch.manual_seed(seed)
    make, shape = CASES[case]
    layer = make()
    return layer, norm_for(layer, seed), torch.randn(6, *shape) + 0.2


def column(values, like):
    """values [out] over like [out, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def row(values, like):
    """values [out] over like [N, out, ...]."""
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def multiply(layer, x, weight, bias=None):
    """What the float layer does, with another weight and bias."""
    parameters = {"weight": weight}
    if layer.bias is not None:
        parameters["bias"] = torch.zeros_like(layer.bias)
    y = torch.func.functional_call(layer, parameters, (x,))
    return y if bias is None else y + row(bias, y)


def rounded(weight, bits=8):
    """Symmetric, per channel, on -2^(bits-1) .. 2^(bits-1) - 1: SimQAT's default, written anew."""
    magnitude = weight.detach().abs().flatten(1).amax(1)
    scale = column(magnitude.clamp(min=1e-30) / ((2**bits - 1) / 2), weight)
    codes = (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes * scale


def parts(tensor):
    """Codes, scale and zero of a QTensor."""
    return tensor.codes, tensor.scale, tensor.zero


def with_its_norm(quantized):
    """A quantized layer by itself: its norm, which a network holds, goes along as a child."""
    quantized.add_module("its_norm", quantized.norm)
    return quantized
