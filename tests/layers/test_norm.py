"""BatchNorm over processes, on one of them: values, gradients and statistics are torch's."""

import copy

import pytest
import torch
from torch import nn

from qdeploy import processes
from qdeploy.layers import norm as shared
from qdeploy.layers.norm import norms_over_processes

SHAPES = {"1d": (6, 5), "1d of sequences": (4, 5, 7), "2d": (4, 5, 3, 2), "3d": (4, 5, 2, 3, 2)}


def given(shape, affine=True, momentum=0.1):
    torch.manual_seed(len(shape))
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(shape), nn.BatchNorm1d)
    norm = kind(shape[1], affine=affine, momentum=momentum).double()
    if affine:
        with torch.no_grad():
            norm.weight.uniform_(-1, 1)[1] = 0
            norm.bias.uniform_(-1, 1)
    return norm, (3 * torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()


def through(function, norm, x):
    x = x.detach().clone().requires_grad_()
    y = function(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    gradients = [p.grad for p in norm.parameters()]
    return [y.detach(), x.grad, *gradients, norm.running_mean, norm.running_var]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_it_is_torchs_batch_norm(shape, affine, momentum):
    norm, x = given(shape, affine, momentum)
    other = copy.deepcopy(norm)
    wanted = through(norm, norm, x)
    found = through(lambda x: shared._forward(other, x), other, x)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_values_stored_channels_last():
    norm, x = given((4, 5, 3, 2))
    other = copy.deepcopy(norm)
    x = x.detach().contiguous(memory_format=torch.channels_last)
    for one, two in zip(
        through(lambda x: shared._forward(other, x), other, x), through(norm, norm, x), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_moments_of_parts_are_those_of_the_whole(monkeypatch, parts):
    """Parts with means of their own; each gathers what the others say."""
    norm, x = given((8, 5, 3, 2))
    x = x.detach() * torch.linspace(0.1, 4, 8, dtype=x.dtype)[:, None, None, None]
    wanted = norm(x)
    slices = x.split(8 // parts)
    moments = torch.stack(
        [torch.stack(torch.var_mean(s, (0, 2, 3), correction=0)[::-1]) for s in slices]
    )
    monkeypatch.setattr(processes, "count", lambda: parts)
    monkeypatch.setattr(processes, "gathered", lambda own: moments)
    other, _ = given((8, 5, 3, 2))
    found = torch.cat([shared._forward(copy.deepcopy(other), part) for part in slices])
    torch.testing.assert_close(found, wanted)
    last = copy.deepcopy(other)
    shared._forward(last, slices[0])
    torch.testing.assert_close(last.running_var, norm.running_var)


def test_a_single_process_keeps_torchs_own_forward():
    network = nn.Sequential(nn.BatchNorm1d(3))
    with norms_over_processes(network):
        assert "forward" not in vars(network[0])
