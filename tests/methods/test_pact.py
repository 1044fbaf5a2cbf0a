"""PACT against its formulas: the clip, the gradient of alpha, where alpha starts."""

import numpy as np
import pytest
import torch

from qdeploy.errors import QdeployError
from qdeploy.methods import ActivationSite, WeightSite, find
from qdeploy.methods.pact import LEAST, first_alpha

PACT = find("pact")


def activation(bits, nonnegative=True, **options):
    return PACT.activation(ActivationSite(nonnegative), bits, PACT.options(**options))


def values(count=20000, seed=0):
    return 3 * torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", PACT.act_bits)
def test_values_are_the_published_ones(bits):
    x, alpha, steps = values(), 2.5, 2**bits - 1
    y = 0.5 * (x.abs() - (x - alpha).abs() + alpha).double().numpy()
    wanted = np.rint(y * steps / alpha) * alpha / steps
    made = activation(bits, alpha=alpha)
    for found in (made.train()(x), made.eval()(x)):
        error = np.abs(found.detach().numpy() - wanted)
        assert (error > 1e-6).mean() < 0.005  # the arithmetic of float32 may tip a tie
        assert error.max() < 1.001 * alpha / steps
    assert len(found.unique()) == steps + 1


@pytest.mark.parametrize("bits", PACT.act_bits)
def test_values_with_a_sign_are_clipped_on_both_sides_around_an_exact_zero(bits):
    x, alpha, steps = values(), 2.5, 2 ** (bits - 1) - 1
    made = activation(bits, nonnegative=False, alpha=alpha)
    wanted = np.rint(x.double().clamp(-alpha, alpha).numpy() * steps / alpha) * alpha / steps
    assert (np.abs(made(x).detach().numpy() - wanted) < 1e-6).mean() > 0.995
    assert made(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("nonnegative", [True, False])
def test_training_sees_the_values_that_ship_bit_for_bit(nonnegative):
    made, x = activation(4, nonnegative, alpha=1.7), values()
    assert torch.equal(made.train()(x), made.eval()(x))


@pytest.mark.parametrize("nonnegative", [True, False])
def test_gradients_are_those_of_the_clip(nonnegative):
    """By autograd through the unrounded clip of the paper."""
    x, grad = values().requires_grad_(), values(seed=1)
    made = activation(3, nonnegative, alpha=1.7, alpha_decay=0).train()
    made(x).backward(grad)
    other, alpha = x.detach().clone().requires_grad_(), torch.tensor(1.7, requires_grad=True)
    low = 0 * alpha if nonnegative else -alpha
    torch.minimum(torch.maximum(other, low), alpha).backward(grad)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(made.alpha.grad, alpha.grad.reshape(1))


def test_a_value_at_alpha_belongs_to_alpha():
    x = torch.tensor([2.0], requires_grad=True)
    made = activation(2, alpha=2, alpha_decay=0).train()
    made(x).sum().backward()
    assert (x.grad.item(), made.alpha.grad.item()) == (0, 1)


def test_the_decay_of_alpha_is_left_to_the_optimizer():
    made = activation(2, alpha=10, alpha_decay=0.1).train()
    made(torch.rand(5)).sum().backward()
    assert made.alpha.grad.item() == 0  # nothing is clipped
    assert made.decays == {"alpha": 0.1}


def test_alpha_starts_where_lsq_does_and_within_the_first_batch():
    x = values().relu()
    made = activation(2).train()
    made(x)
    assert made.alpha.item() == pytest.approx(2 * x.mean().item() * 3**0.5)
    made(100 * x)
    assert made.alpha.item() == pytest.approx(2 * x.mean().item() * 3**0.5)
    assert first_alpha(x, 255) == x.max()


def test_the_paper_start_is_an_option_that_no_batch_moves():
    made = activation(4, alpha=10).train()
    made(values())
    assert made.alpha.item() == 10


def test_a_resumed_run_does_not_start_alpha_again():
    first, second = activation(4).train(), activation(4).train()
    first(values())
    second.load_state_dict(first.state_dict())
    second(100 * values())
    assert second.alpha == first.alpha


def test_without_data_there_is_no_range():
    with pytest.raises(QdeployError, match="has seen no data"):
        activation(4).eval().qparams()


@pytest.mark.parametrize("alpha", [0.0, -3.0])
def test_alpha_below_the_least_range_comes_back(alpha):
    made, x = activation(4, alpha=1, alpha_decay=0).train(), values().relu()
    with torch.no_grad():
        made.alpha.fill_(alpha)
    y = made(x)
    assert y.max().item() == pytest.approx(LEAST)
    (y - x).square().sum().backward()
    assert made.alpha.grad < 0
    assert made.qparams()[0] > 0


def test_a_first_batch_of_zeros_does_no_harm():
    made = activation(4).train()
    y = made(torch.zeros(7, requires_grad=True))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(made.alpha.grad)


def test_weights_are_those_of_dorefa():
    site = WeightSite(torch.randn(4, 3), normalized=True)
    dorefa = find("dorefa")
    for bits in PACT.weight_bits:
        ours = PACT.weight(site, bits, PACT.options())
        theirs = dorefa.weight(site, bits, dorefa.options())
        assert torch.equal(ours.eval()(), theirs.eval()())


def test_a_state_without_alpha_is_noticed_also_after_one_was_there():
    made = activation(4)
    made.train()(values())
    made.load_state_dict(activation(4).state_dict())
    with pytest.raises(QdeployError, match="has seen no data"):
        made.eval().qparams()
