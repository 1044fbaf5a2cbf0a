"""Range BN against numpy loops, integrals of the normal distribution and finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy import QdeployError
from qdeploy.layers.norm import deviation, gain_of, shift_of
from qdeploy.layers.range_norm import (
    RangeBatchNorm1d,
    RangeBatchNorm2d,
    RangeBatchNorm3d,
    range_norm,
)

PUBLISHED = {"paper": (1.5, 1.8), "code": (0.81, 0.985)}
every_constant = pytest.mark.parametrize("constant", PUBLISHED)


def numerator(constant):
    return 1.0 if constant == "paper" else 0.175 * (1 + np.sqrt(np.pi * np.log(4)))


def rows_of(x):
    """[channels, values] of x [N, channels, ...]."""
    return np.moveaxis(x.numpy(), 1, 0).reshape(x.shape[1], -1)


def statistics(x, chunks, constant):
    """Mean and C(n) range of each channel, by loops; n is the mean size of a chunk."""
    rows = rows_of(x)
    chunks = max(1, min(chunks, rows.shape[1] // 16))
    scaling = numerator(constant) / np.sqrt(2 * np.log(rows.shape[1] / chunks))
    ranges = [[np.ptp(chunk) for chunk in np.array_split(row, chunks)] for row in rows]
    return rows.mean(1), scaling * np.mean(ranges, 1)


def random_norm(kind=RangeBatchNorm2d, features=3, **settings):
    norm = kind(features, **settings)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            if value is not None:
                value.copy_(torch.randn(features))
        norm.running_var.copy_(torch.rand(features) + 0.5)
    return norm.train()


SHAPES = {
    "even": (RangeBatchNorm2d, (16, 3, 4, 4)),
    "one over": (RangeBatchNorm1d, (257, 3)),
    "odd": (RangeBatchNorm2d, (7, 3, 9, 5)),
    "signal": (RangeBatchNorm1d, (5, 3, 31)),
    "volume": (RangeBatchNorm3d, (4, 3, 5, 3, 7)),
    "fewer chunks": (RangeBatchNorm1d, (100, 3)),
    "one chunk": (RangeBatchNorm1d, (9, 3)),
    "two values": (RangeBatchNorm1d, (2, 3)),
}


@every_constant
@pytest.mark.parametrize("shape", SHAPES)
def test_training_divides_by_the_mean_range_of_the_chunks(shape, constant):
    torch.manual_seed(0)
    kind, size = SHAPES[shape]
    norm, x = random_norm(kind, constant=constant), torch.randn(size) * 3 + 1
    mean, spread = statistics(x, 16, constant)
    gain = norm.weight.detach().numpy() / np.sqrt(spread**2 + norm.eps)
    wanted = gain[:, None] * (rows_of(x) - mean[:, None]) + norm.bias.detach().numpy()[:, None]
    np.testing.assert_allclose(rows_of(norm(x).detach()), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunks", [1, 3, 16])
def test_the_number_of_chunks_is_a_setting(chunks):
    torch.manual_seed(0)
    norm, x = random_norm(RangeBatchNorm1d, chunks=chunks, momentum=1.0), torch.randn(300, 3)
    norm(x)
    _, spread = statistics(x, chunks, "code")
    np.testing.assert_allclose(norm.running_var, spread**2, rtol=1e-5)


def expected_range(n):
    """Of n standard normal values: the integral of 1 - P(x)^n - (1 - P(x))^n."""
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    p = torch.special.ndtr(x)
    return torch.trapezoid(1 - p**n - (1 - p) ** n, x).item()


@every_constant
@pytest.mark.parametrize("n", [16, 100, 1000, 10000])
def test_normal_values_get_the_published_share_of_their_deviation(n, constant):
    torch.manual_seed(n)
    sigma, norm = 2.5, RangeBatchNorm1d(32, constant=constant, momentum=1.0)
    norm(sigma * torch.randn(16 * n, 32) + 1)
    found = (norm.running_var.sqrt() / sigma).mean().item()
    exact = numerator(constant) / math.sqrt(2 * math.log(n)) * expected_range(n)
    assert found == pytest.approx(exact, rel=0.03)
    low, high = PUBLISHED[constant]
    assert low - 0.005 < exact < high


@pytest.mark.parametrize(
    ("kind", "shape", "settings"),
    [
        (RangeBatchNorm2d, (2, 3, 3, 6), {}),
        (RangeBatchNorm2d, (1, 3, 7, 5), {"constant": "paper", "chunks": 3}),
        (RangeBatchNorm1d, (5, 3), {"affine": False}),
        (RangeBatchNorm1d, (3, 3, 11), {"momentum": None}),
    ],
)
def test_the_gradient_is_that_of_finite_differences(kind, shape, settings):
    torch.manual_seed(0)
    norm = random_norm(kind, **settings).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = tuple(norm.parameters())

    def function(x, *values):
        names = [name for name, _ in norm.named_parameters()]
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters), eps=1e-7, atol=1e-5)


def test_evaluation_and_folding_divide_by_what_training_divides_by():
    torch.manual_seed(0)
    norm, x = random_norm(momentum=1.0), torch.randn(6, 3, 7, 7) * 2 + 1
    trained = norm(x)
    torch.testing.assert_close(norm.eval()(x), trained)
    _, spread = statistics(x, 16, "code")
    np.testing.assert_allclose(deviation(norm), np.sqrt(spread**2 + norm.eps), rtol=1e-5)
    folded = x * gain_of(norm).view(-1, 1, 1) + shift_of(norm, None).view(-1, 1, 1)
    torch.testing.assert_close(folded, trained)


@pytest.mark.parametrize("affine", [True, False])
def test_evaluation_is_that_of_batch_norm_and_moves_nothing(affine):
    norm, x = random_norm(affine=affine).eval(), torch.randn(4, 3, 5, 5)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    wanted = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    assert torch.equal(norm(x), wanted)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_the_newest_batch_weighs_the_momentum_as_in_torch(momentum):
    torch.manual_seed(0)
    norm, x = random_norm(momentum=momentum), torch.randn(4, 3, 9, 9) + 2
    before = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    norm(x)
    mean, spread = statistics(x, 16, "code")
    for now, old, new in zip(
        (norm.running_mean, norm.running_var), before, (mean, spread**2), strict=True
    ):
        np.testing.assert_allclose(now, (1 - momentum) * old + momentum * new, rtol=1e-5)
    assert norm.num_batches_tracked == 1


def test_without_momentum_the_statistics_are_plain_means():
    torch.manual_seed(0)
    norm = random_norm(momentum=None)
    norm.reset_running_stats()
    batches = [torch.randn(4, 3, 6, 6) * scale for scale in (1, 2, 5)]
    for batch in batches:
        norm(batch)
    means, spreads = zip(*(statistics(batch, 16, "code") for batch in batches), strict=True)
    np.testing.assert_allclose(norm.running_mean, np.mean(means, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, np.mean(np.square(spreads), 0), rtol=1e-5)


def test_a_constant_channel_gives_its_shift_and_a_finite_gradient():
    norm, x = random_norm(), torch.randn(4, 3, 5, 5)
    x[:, 1] = 0
    x.requires_grad_()
    y = norm(x)
    (y * torch.randn_like(y)).sum().backward()
    torch.testing.assert_close(y[:, 1], norm.bias[1].expand(4, 5, 5))
    for gradient in (x.grad, norm.weight.grad, norm.bias.grad):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("count", [0, 1])
def test_a_channel_without_a_range_is_an_error(count):
    with pytest.raises(QdeployError, match=f"{count} value per channel.*batch of two"):
        RangeBatchNorm1d(3)(torch.ones(count, 3))


def test_half_precision_goes_in_and_out_and_not_into_the_statistics():
    torch.manual_seed(0)
    norm, x = random_norm(momentum=1.0), (torch.randn(32, 3, 20, 20) + 100).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    mean, spread = statistics(x.float(), 16, "code")
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, spread**2, rtol=1e-5)


def trained(kind, affine=True, eps=1e-2):
    """A BatchNorm that has seen a normal batch, and the batch."""
    norm = kind(3, affine=affine, momentum=1.0, eps=eps)
    x = torch.randn(64, 3, 8, 8) * torch.tensor([0.2, 1, 5]).view(-1, 1, 1) + 1
    shapes = {nn.BatchNorm1d: (64,), nn.BatchNorm2d: (8, 8), nn.BatchNorm3d: (2, 4, 8)}
    x = x.flatten(2).unflatten(2, shapes[kind])
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    norm(x)
    return norm, x


@every_constant
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_a_trained_norm_evaluates_as_before(kind, affine, constant):
    torch.manual_seed(0)
    norm, x = trained(kind, affine)
    made = range_norm(norm.eval(), 16, constant)
    assert isinstance(made, kind)
    assert not made.training
    assert (made.eps, made.momentum) == (norm.eps, norm.momentum)
    assert made.num_batches_tracked == 1
    torch.testing.assert_close(made(x), norm(x))


@every_constant
def test_a_trained_norm_starts_training_near_what_it_gave(constant):
    """Its output grows by 1 / 0.985 to 1 / 0.81 with either constant; 1 / 1.5 would be a jump."""
    torch.manual_seed(0)
    norm, x = trained(nn.BatchNorm2d, eps=1e-5)
    made = range_norm(norm.train(), 16, constant)
    assert made.training
    centred = [y - y.mean((0, 2, 3), keepdim=True) for y in (made(x), norm(x))]
    growth = centred[0].std((0, 2, 3)) / centred[1].std((0, 2, 3))
    assert ((growth > 1 / 0.985) & (growth < 1 / 0.81)).all()
