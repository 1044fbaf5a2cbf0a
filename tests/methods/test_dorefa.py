"""DoReFa-Net against its formulas, written out in numpy float64."""

import numpy as np
import pytest
import torch
from float_layers import parts
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

import qdeploy
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.noise import pairwise_uniform
from qdeploy.layers.product import MatrixProduct
from qdeploy.methods import ActivationSite, WeightSite, find
from qdeploy.methods.dorefa import quantized_gradient

DOREFA = find("dorefa")
PUBLISHED = (2, 3, 4, 5, 6, 7)  # the levels as the paper has them
MAPPED = (8, 16)  # one step fewer


def trained_weight(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def quantizer(weight, bits, normalized=True):
    return DOREFA.weight(WeightSite(weight, normalized), bits, DOREFA.options())


def activation(bits, nonnegative=True):
    return DOREFA.activation(ActivationSite(nonnegative), bits, DOREFA.options())


def q(u, steps):
    """Q_k of the paper, in float64."""
    return np.rint(u * steps) / steps


def published_weight(weight, steps):
    bounded = np.tanh(weight.double().numpy())
    return 2 * q(bounded / (2 * np.abs(bounded).max()) + 0.5, steps) - 1


@pytest.mark.parametrize("bits", PUBLISHED + MAPPED)
def test_weights_are_the_published_ones(bits):
    steps = 2**bits - 1 if bits in PUBLISHED else 2**bits - 2
    weight = trained_weight(6, 5, 3, 3)
    made = quantizer(weight, bits)
    wanted = published_weight(weight, steps)
    for found in (made.train()(), made.eval()()):
        error = np.abs(found.detach().numpy() - wanted)
        assert (error > 3e-7).mean() < 0.02  # the arithmetic of float32 may tip a tie
        assert error.max() < 2.1 / steps
    assert np.abs(wanted).max() == 1


@pytest.mark.parametrize("bits", MAPPED)
def test_eight_and_sixteen_bits_have_one_step_fewer_and_an_exact_zero(bits):
    made = quantizer(torch.tensor([[0.0, 0.5, -0.5]]), bits)
    codes, scale, zero = parts(made.collapse(made.latent))
    top = 2 ** (bits - 1) - 1
    assert codes.tolist() == [[0, top, -top]]
    assert codes.dtype == zero.dtype == {8: torch.int8, 16: torch.int16}[bits]
    torch.testing.assert_close(scale, torch.tensor([1 / top]))


def test_one_bit_is_the_sign_times_the_mean_size_of_the_whole_layer():
    weight = torch.tensor([[0.1, -0.2], [0.0, 0.5]])
    made = quantizer(weight, 1)
    wanted = 0.2 * torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(made.eval()(), wanted)
    grad = torch.randn(2, 2)
    (made.train()() * grad).sum().backward()
    torch.testing.assert_close(made.latent.grad, grad)


@pytest.mark.parametrize("bits", PUBLISHED + MAPPED)
def test_without_a_batchnorm_the_layer_keeps_its_size(bits):
    weight = trained_weight(6, 5)
    made = quantizer(weight, bits, normalized=False).eval()
    largest = weight.tanh().abs().max()
    torch.testing.assert_close(made(), quantizer(weight, bits).eval()() * largest)
    assert (made() - weight.tanh()).abs().max() <= 1.001 * largest / (2**bits - 2)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_gradient_is_that_of_tanh_over_its_maximum(normalized):
    """By finite differences in float64, with the rounding left out."""
    weight, grad = trained_weight(3, 4).double(), trained_weight(3, 4, seed=1).double()
    made = quantizer(weight, 2, normalized).train()
    (made() * grad).sum().backward()

    def smooth(values):
        bounded = values.tanh()
        level = bounded / bounded.abs().max()
        if normalized:
            return (level * grad).sum()
        # The rounded levels are what the maximum is multiplied by.
        rounded = level + rounding
        return (rounded * bounded.abs().max() * grad).sum()

    start = weight.tanh() / weight.tanh().abs().max()
    rounding = torch.from_numpy(published_weight(weight, 3)) - start
    wanted = torch.zeros_like(weight)
    for index in np.ndindex(*weight.shape):
        step = torch.zeros_like(weight)
        step[index] = 1e-6
        wanted[index] = (smooth(weight + step) - smooth(weight - step)) / 2e-6
    torch.testing.assert_close(made.latent.grad, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_a_weight_of_zeros_trains(bits, normalized):
    made = quantizer(torch.zeros(3, 4), bits, normalized)
    made.train()().sum().backward()
    assert torch.isfinite(made.latent.grad).all()
    assert torch.isfinite(made.eval()()).all()
    assert (made.collapse(made.latent).scale > 0).all()


@pytest.mark.parametrize("bits", DOREFA.act_bits)
def test_activations_after_a_relu_are_clipped_at_one_and_use_every_level(bits):
    x = 2 * torch.rand(50000, generator=torch.Generator().manual_seed(0)) - 0.5
    steps = 2**bits - 1
    made = activation(bits)
    error = np.abs(made.eval()(x).numpy() - q(x.double().clamp(0, 1).numpy(), steps))
    assert (error > 3e-7).mean() < 0.02  # the arithmetic of float32 may tip a tie
    assert error.max() < 1.001 / steps
    assert bits == 16 or len(made(x).unique()) == steps + 1
    x.requires_grad_()
    made.train()(x).sum().backward()
    inside = (x >= 0) & (x <= 1)
    assert torch.equal(x.grad, inside.float())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_activations_with_a_sign_are_clipped_on_both_sides_around_an_exact_zero(bits):
    x = 3 * torch.rand(5000, generator=torch.Generator().manual_seed(0)) - 1.5
    steps = 2 ** (bits - 1) - 1
    wanted = q(x.double().clamp(-1, 1).numpy(), steps)
    np.testing.assert_allclose(activation(bits, nonnegative=False).eval()(x), wanted, atol=2e-7)


def test_one_bit_with_a_sign_is_the_sign():
    found = activation(1, nonnegative=False)(torch.tensor([-2.0, -0.1, 0.0, 0.4]))
    assert found.tolist() == [-1, -1, 1, 1]


def test_one_image_does_not_depend_on_the_others():
    """Dividing by the batch's maximum would make it so, and halve the levels after tanh."""
    made, x = activation(2).train(), torch.rand(4, 3)
    alone = made(x[:1])
    x[1:] *= 50
    assert torch.equal(made(x)[:1], alone)


def test_other_operators_read_measured_ranges():
    assert isinstance(DOREFA.carrier(8, DOREFA.options()), MovingRange)


def published_gradient(grad, bits, uniform):
    """Equation 12 in float64; uniform in 0..1 is the noise before it is centred."""
    steps = 2.0**bits - 1
    axes = tuple(range(1, grad.ndim))
    largest = np.abs(grad).max(axes, keepdims=True)
    u = grad / (2 * largest) + 0.5 + (uniform - 0.5) / steps
    return 2 * largest * (q(np.clip(u, 0, 1), steps) - 0.5)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 5, 5)])
def test_the_gradient_is_rounded_as_published(bits, shape):
    sizes = torch.logspace(-6, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    grad = torch.randn(shape) * sizes
    torch.manual_seed(3)
    found = quantized_gradient(grad, bits)
    torch.manual_seed(3)
    uniform = pairwise_uniform(grad).double().numpy()
    wanted = published_gradient(grad.double().numpy(), bits, uniform)
    largest = grad.abs().amax(tuple(range(1, len(shape))), keepdim=True).numpy()
    step = 2 * largest / (2**bits - 1)
    error = np.abs(found.numpy() - wanted) / step
    assert np.quantile(error, 0.99) < 1e-2  # rounding noise of float32 may tip a tie
    levels = (found.numpy() / step + 0.5) % 1
    assert np.minimum(levels, 1 - levels).max() < 1e-2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_mean_of_many_rounded_gradients_is_the_gradient(bits):
    torch.manual_seed(0)
    grad = torch.tensor([[1.0, -0.3, 0.013, 0.0], [-2e-5, 1e-5, 7e-6, 3e-7]])
    draws = torch.stack([quantized_gradient(grad, bits) for _ in range(4000)])
    step = 2 * grad.abs().amax(1, keepdim=True) / (2**bits - 1)
    assert ((draws.mean(0) - grad).abs() < 0.5 * step * 5 / 4000**0.5).all()
    assert draws.std(0).gt(0.05 * step)[:, 1:].all()


def test_a_sample_without_a_gradient_gets_none():
    grad = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    found = quantized_gradient(grad, 2)
    assert found[0].tolist() == [0, 0]
    assert torch.isfinite(found).all()


def test_many_bits_leave_the_gradient_as_it_is():
    grad = torch.randn(8, 100)
    torch.testing.assert_close(quantized_gradient(grad, 31), grad, rtol=0, atol=1e-6)


def test_half_precision_gradients_stay_so():
    found = quantized_gradient(torch.randn(4, 9).to(torch.bfloat16), 8)
    assert found.dtype == torch.bfloat16


def test_input_and_weight_get_the_products_of_the_rounded_gradient():
    made = DOREFA.product(MatrixProduct(), DOREFA.options(grad_bits=2))
    x = torch.randn(6, 4, requires_grad=True)
    weight, bias = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    grad = torch.randn(6, 3)
    y = made(x, weight, bias)
    assert torch.equal(y, F.linear(x, weight, bias))
    torch.manual_seed(5)
    y.backward(grad)
    torch.manual_seed(5)
    rounded = quantized_gradient(grad, 2)
    assert not torch.allclose(rounded, grad)
    torch.testing.assert_close(x.grad, rounded @ weight)
    torch.testing.assert_close(weight.grad, rounded.T @ x)
    torch.testing.assert_close(bias.grad, rounded.sum(0))
    assert made.shipped == MatrixProduct()


def test_gradients_are_float_unless_asked_for():
    assert DOREFA.product(MatrixProduct(), DOREFA.options()) == MatrixProduct()


@pytest.mark.parametrize("bits", [1, 33])
def test_gradients_have_two_bits_or_more(bits):
    with pytest.raises(ValidationError):
        DOREFA.options(grad_bits=bits)


def test_training_with_few_bits_of_gradient_lowers_the_loss():
    torch.manual_seed(0)
    x, network = torch.randn(64, 6), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    prepared = qdeploy.prepare(network, x, "dorefa", 4, 4, grad_bits=4)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(prepared.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(prepared(x), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
