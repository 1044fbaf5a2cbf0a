import copy
import math

import numpy as np
import pytest
import torch
from float_layers import parts
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange
from qdeploy.methods import ActivationSite, WeightSite, find, slb
from qdeploy.methods.slb import OUTERMOST, temperature

SLB = find("slb")
LEVELS = {1: [-1, 1], 2: [-1, -1 / 3, 1 / 3, 1], 4: [(2 * k - 15) / 15 for k in range(16)]}
BITS = sorted(LEVELS)


def quantizer(weight, bits, normalized=True, **options):
    return SLB.weight(WeightSite(weight, normalized), bits, SLB.options(**options))


def trained_weight(*shape, std=0.05, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def pair_of_logits(latent):
    """The two logits whose orthonormal difference is the 1-bit latent, [..., 2]."""
    return torch.stack([-latent, latent], -1) / math.sqrt(2)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


# The temperature schedule


@pytest.mark.parametrize(
    ("epochs", "start", "end", "factor", "goldens", "hard"),
    [
        (100, 0.2, 0.6, 1.2, {1: 1, 20: 1, 21: 1.2, 22: 1.44, 59: 1224.81}, 60),
        (100, 0.4, 0.9, 1.12, {1: 1, 40: 1, 41: 1.12, 89: 258.04}, 90),
        (10, 0.2, 0.6, 3.2, {1: 1, 2: 1, 3: 3.2, 4: 10.24, 5: 32.77}, 6),
    ],
)
def test_the_published_temperatures(epochs, start, end, factor, goldens, hard):
    options = SLB.options(t_start_time=start, t_end_time=end, t_factor=factor)
    for epoch, golden in goldens.items():
        assert temperature(epoch, epochs, options) == pytest.approx(golden, abs=0.005)
    assert all(math.isinf(temperature(e, epochs, options)) for e in range(hard, epochs + 1))


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 10, 20, 30, 90, 100, 300])
@pytest.mark.parametrize("first", [0.5, 1.0, 2.5])
def test_without_a_factor_every_schedule_rises_as_far_as_the_published_one(epochs, first):
    """Evenly in its logarithm, to the 1469.77 that the end epoch would have if it were soft."""
    options = SLB.options(t_start_val=first)
    start, end = int(0.2 * epochs), int(0.6 * epochs)
    soft = [temperature(e, epochs, options) for e in range(1, end)]
    line = np.interp(range(1, end), [start, end], np.log([first, 1469.77]))
    np.testing.assert_allclose(np.log(soft), line, atol=1e-5)
    assert math.isinf(temperature(end, epochs, options))


def test_without_a_factor_a_start_above_the_end_stays():
    options = SLB.options(t_start_val=2000.0)
    assert [temperature(e, 10, options) for e in range(1, 6)] == [2000.0] * 5


def test_in_a_hundred_epochs_the_factor_is_the_published_one():
    given, published = SLB.options(), SLB.options(t_factor=1.2)
    for epoch in range(1, 101):
        assert temperature(epoch, 100, given) == pytest.approx(temperature(epoch, 100, published))


def test_the_temperature_at_which_the_published_schedules_turn_hard():
    """One more factor at the end epoch would be 1469.77 and 289.00."""
    for start, end, factor, last in ((0.2, 0.6, 1.2, 1469.77), (0.4, 0.9, 1.12, 289.00)):
        options = SLB.options(t_start_time=start, t_end_time=end, t_factor=factor)
        before = temperature(int(100 * end) - 1, 100, options)
        assert before * factor == pytest.approx(last, abs=0.005)


def test_the_start_value_multiplies_every_temperature():
    options = SLB.options(t_start_val=2.5, t_factor=3.0)
    assert [temperature(e, 10, options) for e in range(1, 6)] == [2.5, 2.5, 7.5, 22.5, 67.5]


@pytest.mark.parametrize(
    ("start", "end", "soft_epochs", "first"),
    [(0.5, 0.5, 4, 1), (1.0, 1.0, 9, 1), (0.0, 0.0, 0, math.inf), (0.0, 1.0, 9, 1469.77**0.1)],
)
def test_the_boundaries_of_the_times(start, end, soft_epochs, first):
    options = SLB.options(t_start_time=start, t_end_time=end)
    assert temperature(1, 10, options) == pytest.approx(first)
    soft = [e for e in range(1, 11) if math.isfinite(temperature(e, 10, options))]
    assert soft == list(range(1, soft_epochs + 1))


@given(
    st.integers(1, 5000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.none() | st.floats(0.5, 8),
    st.floats(1e-30, 1e30),
    st.data(),
)
def test_temperatures_never_overflow_and_rise_unless_the_factor_is_below_1(
    epochs, a, b, factor, first, data
):
    options = SLB.options(
        t_start_val=first, t_start_time=min(a, b), t_end_time=max(a, b), t_factor=factor
    )
    epoch = data.draw(st.integers(1, epochs))
    now, then = temperature(epoch, epochs, options), temperature(epoch + 1, epochs, options)
    assert now > 0
    assert math.isinf(now) or now < 1e31
    assert then >= now or (factor is not None and factor < 1)


@pytest.mark.parametrize("bits", BITS)
def test_the_hottest_soft_temperature_still_gives_numbers(bits):
    made = quantizer(trained_weight(4, 3, 3, 3), bits, t_start_time=0, t_end_time=1, t_factor=8)
    made.set_progress(1998, 2000)
    assert made.temperature == slb.HOTTEST
    weight = made.train()()
    weight.square().sum().backward()
    assert torch.isfinite(made.latent.grad).all()
    torch.testing.assert_close(weight, made.eval()())


def test_progress_counts_epochs_from_0_and_adds_those_already_trained():
    made = quantizer(torch.ones(1, 1, 1, 2), 1, t_factor=3.2)
    temperatures = []
    for epoch in range(10):
        made.set_progress(epoch, 10)
        temperatures.append(made.temperature)
    assert temperatures[:3] == [1, 1, 3.2]
    assert temperatures[4] == pytest.approx(32.768)
    assert temperatures[5:] == [math.inf] * 5

    later = quantizer(torch.ones(1, 1, 1, 2), 1, t_factor=3.2, has_trained_epoch=4)
    later.set_progress(0, 6)
    assert later.temperature == pytest.approx(32.768)


def test_epoch_size_is_the_length_of_the_schedule_whatever_this_run_does():
    made = quantizer(torch.ones(1, 1, 1, 2), 1, t_factor=3.2, epoch_size=10, has_trained_epoch=2)
    made.set_progress(0, 3)
    assert made.temperature == 3.2


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"has_trained_epoch": 10, "epoch_size": 10}, "has_trained_epoch.*below epoch_size"),
        ({"has_trained_epoch": 11, "epoch_size": 10}, "has_trained_epoch.*below epoch_size"),
        ({"t_start_time": 0.7}, r"t_end_time \(0.6\) must not be before t_start_time \(0.7\)"),
        ({"t_end_time": 0.1}, "t_end_time"),
        ({"t_end_time": 1.01}, "t_end_time"),
        ({"t_start_time": -0.01}, "t_start_time"),
        ({"t_start_val": 0}, "t_start_val"),
        ({"t_factor": 0}, "t_factor"),
        ({"t_factor": -1.2}, "t_factor"),
        ({"epoch_size": 0}, "epoch_size"),
        ({"has_trained_epoch": -1}, "has_trained_epoch"),
        ({"quant_delay": -1}, "quant_delay"),
        ({"start": "noise"}, "start"),
        ({"temperature": 2}, "temperature"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(ValidationError, match=message):
        SLB.options(**options)


def test_equal_times_and_the_last_epoch_but_one_are_allowed():
    SLB.options(t_start_time=0.5, t_end_time=0.5, has_trained_epoch=9, epoch_size=10)


def test_published_defaults():
    options = SLB.options()
    times = options.t_start_val, options.t_start_time, options.t_end_time, options.t_factor
    assert times == (1.0, 0.2, 0.6, None)  # 1.2 in a hundred epochs, see above
    assert (options.has_trained_epoch, options.quant_delay) == (0, 900)
    assert (SLB.weight_bits, SLB.act_bits) == ((1, 2, 4), (8,))


def test_linear_layers_are_searched_only_when_asked():
    conv, linear = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)
    assert SLB.options().covers(conv)
    assert not SLB.options().covers(linear)
    assert SLB.options(linear=True).covers(linear)


def test_activations_are_rounded_after_the_published_delay():
    made = SLB.activation(ActivationSite(nonnegative=True), 8, SLB.options(ema_decay=0.9))
    assert isinstance(made, MovingRange)
    assert (made.bits, made.decay, made.quant_delay) == (8, 0.9, 900)
    assert (made.symmetric, made.grid.codes) == (False, tuple(range(256)))


# What training multiplies by, and what ships


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("heat", [1.0, 3.2, 40.0])
def test_the_weight_is_the_expected_level_under_a_softmax(bits, heat):
    made = quantizer(trained_weight(5, 3, 3, 3, std=0.4), bits, start="random", t_start_val=heat)
    logits = pair_of_logits(made.latent) if bits == 1 else made.latent
    assert logits.shape == (5, 3, 3, 3, 2**bits)
    wanted = softmax(logits.detach().double().numpy() * heat) @ np.array(LEVELS[bits])
    np.testing.assert_allclose(made.train()().detach(), wanted, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_evaluation_is_the_most_probable_level_in_every_epoch(bits):
    made = quantizer(trained_weight(5, 3, 3, 3), bits, start="random")
    logits = pair_of_logits(made.latent) if bits == 1 else made.latent
    best = logits.detach().numpy().argmax(-1)
    wanted = np.array(LEVELS[bits])[best]
    for epoch in (0, 4, 9):
        made.set_progress(epoch, 10)
        np.testing.assert_allclose(made.eval()().detach(), wanted, rtol=1e-6)
    codes, scale, zero = parts(made.collapse(made.latent))
    np.testing.assert_array_equal(codes, 2 * best - (2**bits - 1))
    np.testing.assert_allclose(scale, 1 / (2**bits - 1), rtol=1e-7)
    assert not zero.any()
    np.testing.assert_allclose(made.train()().detach(), wanted, rtol=1e-6)  # committed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("normalized", [True, False])
def test_the_gradient_agrees_with_finite_differences(bits, normalized):
    weight = trained_weight(2, 2, 1, 2, std=0.5).double()
    made = quantizer(weight, bits, normalized, t_start_val=1.5)
    assert torch.autograd.gradcheck(made.relax, made.latent)
    if not normalized:
        latent = made.latent.detach()

        def by_scale(log_scale):
            made._parameters["log_scale"] = log_scale
            return made.relax(latent)

        assert torch.autograd.gradcheck(by_scale, made.log_scale.detach().requires_grad_())


@pytest.mark.parametrize("part", [1, 7, 64])
def test_the_parts_that_the_softmax_is_computed_in_do_not_matter(monkeypatch, part):
    made = quantizer(trained_weight(3, 5, 3, 3), 4, t_start_val=2.0)
    upstream = torch.randn(3, 5, 3, 3, generator=torch.manual_seed(1))
    logits = made.latent.detach().clone().requires_grad_()
    wanted = torch.softmax(logits * 2, -1) @ torch.tensor(LEVELS[4])
    wanted.backward(upstream)
    monkeypatch.setattr(slb, "PART", 16 * part)
    found = made.relax(made.latent)
    found.backward(upstream)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(made.latent.grad, logits.grad)


def test_nothing_as_large_as_the_logits_is_kept_for_the_backward_pass():
    made = quantizer(trained_weight(8, 8, 3, 3), 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        made.relax(made.latent)
    assert [x for x in kept if x.numel() >= made.latent.numel()] == [made.latent]


class TwoLogits(nn.Module):
    """1-bit SLB as published: a softmax over two logits a weight."""

    def __init__(self, latent):
        super().__init__()
        self.logits = nn.Parameter(pair_of_logits(latent.detach()))
        self.temperature = 1.0

    def forward(self):
        probabilities = torch.softmax(self.logits * self.temperature, -1)
        return probabilities[..., 1] - probabilities[..., 0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_one_logit_trains_along_the_very_path_of_two(nesterov):
    one = quantizer(trained_weight(3, 4, seed=2).double(), 1, linear=True).train()
    two = TwoLogits(one.latent)
    settings = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": nesterov}
    optimizers = [torch.optim.SGD(m.parameters(), **settings) for m in (one, two)]
    random = torch.Generator().manual_seed(1)
    start = one.latent.detach().clone()
    for step in range(60):
        one.inverse_temperature.fill_(1.05**-step)
        two.temperature = 1 / one.inverse_temperature.item()
        x = torch.randn(8, 4, dtype=torch.float64, generator=random)
        y = torch.randn(8, 3, dtype=torch.float64, generator=random)
        for model, optimizer in zip((one, two), optimizers, strict=True):
            optimizer.zero_grad()
            (x @ model().T - y).square().mean().backward()
            optimizer.step()
        difference = (two.logits[..., 1] - two.logits[..., 0]) / math.sqrt(2)
        torch.testing.assert_close(one.latent, difference, rtol=1e-9, atol=1e-11)
    assert (one.latent - start).abs().max() > 0.1


# From a float weight


def second_order(bits, clip):
    """Relative error of the expected level at T = 1 in second order of beta = clip / m2.

    The third joint cumulant of level, level and level^2: -(m4 - m2^2) beta^2 / (2 clip).
    """
    levels = np.array(LEVELS[bits])
    m2, m4 = (levels**2).mean(), (levels**4).mean()
    return -(m4 - m2**2) * clip / (2 * m2**2)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("std", [0.02, 0.05, 0.1])
def test_the_search_starts_as_the_trained_weight(bits, std):
    """Up to the second-order term, which is a common factor, and what is left of third order."""
    weight = trained_weight(16, 8, 3, 3, std=std)
    started = quantizer(weight, bits).train()()
    clip = OUTERMOST[bits] * weight.square().mean().sqrt().item()
    factor = 1 + second_order(bits, clip)
    error = (started - factor * weight).square().mean().sqrt() / weight.square().mean().sqrt()
    assert error < clip**2
    assert abs(factor - 1) < 3.3 * std


def test_at_1_bit_the_search_starts_as_the_trained_weight_exactly():
    weight = torch.linspace(-0.99, 0.99, 24).reshape(2, 3, 2, 2)
    torch.testing.assert_close(quantizer(weight, 1).train()(), weight)
    beyond = quantizer(torch.tensor([[-3.0, 3.0]]), 1).train()()
    torch.testing.assert_close(beyond, torch.tensor([[-0.999, 0.999]]))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("normalized", [True, False])
def test_hardening_at_once_rounds_the_trained_weight_to_the_nearest_level(bits, normalized):
    weight = trained_weight(16, 8, 3, 3)
    made = quantizer(weight, bits, normalized)
    clip = OUTERMOST.get(bits, 1) * weight.square().mean().sqrt().item()
    distance = np.abs(weight.numpy()[..., None] / clip - np.array(LEVELS[bits]))
    codes = made.collapse(made.latent).codes
    np.testing.assert_array_equal(codes, 2 * distance.argmin(-1) - (2**bits - 1))


@pytest.mark.parametrize("bits", sorted(OUTERMOST))
def test_the_clipping_point_is_the_best_for_a_normal_weight(bits):
    """Mean squared error of a uniform quantizer over N(0, 1), by numerical integration."""
    x = np.linspace(-8, 8, 4001)
    density = np.exp(-(x**2) / 2)

    def error(clip):
        levels = clip * np.array(LEVELS[bits])
        return (density * np.abs(x[:, None] - levels).min(1) ** 2).sum()

    clips = np.linspace(1, 3.5, 251)
    best = clips[np.argmin([error(clip) for clip in clips])]
    assert OUTERMOST[bits] == pytest.approx(best, abs=0.011)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (200, 300)])
def test_random_logits_are_he_normal_as_published(bits, shape):
    """std sqrt(2 / (out * kernel * 2^bits)), whatever the float weight is."""
    torch.manual_seed(0)
    made = quantizer(torch.zeros(shape), bits, start="random")
    kernel = math.prod(shape[2:])
    wanted = math.sqrt(2 / (shape[0] * kernel * 2**bits))
    assert made.latent.std().item() == pytest.approx(wanted, rel=0.03)
    assert made.latent.mean().item() == pytest.approx(0, abs=wanted / 30)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    "weight",
    [
        torch.full((2, 3, 3, 3), 0.5),
        torch.zeros(2, 3, 3, 3),
        torch.full((1, 1, 1, 1), -0.3),
        torch.cat([torch.zeros(1, 3, 3, 3), trained_weight(1, 3, 3, 3)]),
        trained_weight(2, 3, 3, 3, std=1e-20),
        trained_weight(2, 3, 3, 3, std=30),
    ],
    ids=["constant", "zero", "single", "dead-channel", "tiny", "huge"],
)
def test_odd_float_weights_give_a_search_that_can_train(weight, bits, normalized):
    torch.manual_seed(0)
    made = quantizer(weight, bits, normalized).train()
    trained = made()
    (trained * torch.randn_like(trained)).sum().backward()
    assert torch.isfinite(made.latent).all()
    assert torch.isfinite(trained).all()
    assert made.latent.grad.abs().max() < 100
    scale = made.collapse(made.latent).scale
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


def test_a_live_channel_is_not_touched_by_the_noise_of_a_dead_one():
    weight = torch.cat([torch.zeros(1, 3, 3, 3), trained_weight(2, 3, 3, 3)])
    started = quantizer(weight, 1, normalized=False).train()()
    torch.testing.assert_close(started[1:], weight[1:])
    he = math.sqrt(2 / 27)
    assert started[0].square().mean().sqrt().item() == pytest.approx(he, rel=0.5)


# Without BatchNorm


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("epoch", range(10))
def test_without_batch_norm_soft_and_hard_weights_are_of_one_size(bits, epoch):
    weight = trained_weight(6, 4, 3, 3) * torch.arange(1, 7).reshape(6, 1, 1, 1)
    made = quantizer(weight, bits, normalized=False, t_factor=3.2)
    made.set_progress(epoch, 10)
    wanted = weight.square().flatten(1).mean(1).sqrt()
    for mode in (True, False):
        rms = made.train(mode)().square().flatten(1).mean(1).sqrt()
        torch.testing.assert_close(rms, wanted)


def test_with_batch_norm_there_is_no_scale_to_learn():
    assert quantizer(trained_weight(2, 2), 1).log_scale is None
    names = {name for name, _ in quantizer(trained_weight(2, 2), 1, False).named_parameters()}
    assert names == {"latent", "log_scale"}


def test_the_scale_goes_on_training_after_the_commitment():
    made = quantizer(trained_weight(4, 3, 3, 3), 2, normalized=False)
    made.set_progress(9, 10)
    made.train()().square().sum().backward()
    assert made.latent.grad is None
    wanted = 2 * made.eval()().square().flatten(1).sum(1)  # d (e^s)^2 / ds = 2 (e^s)^2
    torch.testing.assert_close(made.log_scale.grad, wanted.detach())


# Commitment


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.95, weight_decay=2e-3)


def adam_with_decay_in_the_gradient(parameters):
    """Its steps are of one size, however small the gradient is."""
    return torch.optim.Adam(parameters, lr=0.2, weight_decay=0.1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.2, weight_decay=0.1)


def lbfgs(parameters):
    """Several forwards a step; takes a gradient that is not there for zeros."""
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


OPTIMIZERS = [sgd, adam_with_decay_in_the_gradient, adamw, lbfgs]


def trained(made, make_optimizer, steps, zeros=False, before_step=lambda step: None):
    """Trains towards the other side of every weight; `zeros`: gradients of zeros where there are none."""
    optimizer = make_optimizer(made.parameters())
    target = -made.eval()().detach().sign()
    made.train()

    def closure():
        optimizer.zero_grad()
        loss = (made() - target).square().sum()
        if loss.requires_grad:
            loss.backward()
        if zeros and made.latent.grad is None:
            made.latent.grad = torch.zeros_like(made.latent)
        return loss

    for step in range(steps):
        before_step(step)
        optimizer.step(closure)
    return made


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zeros", [False, True], ids=["no gradient", "zeros, as under DDP"])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_once_committed_the_best_levels_stay(bits, zeros, make_optimizer):
    """Under all that still moves a logit, from momentum of a hot search to the decay of Adam."""
    made = quantizer(trained_weight(4, 3), bits, normalized=False)
    committed = []

    def commit(step):
        if step == 4:
            made.set_progress(9, 10)
            committed.extend(copy.deepcopy([made.collapse(made.latent).codes, made.log_scale]))

    trained(made, make_optimizer, 60, zeros, commit)
    assert not made.searching
    assert torch.equal(made.collapse(made.latent).codes, committed[0])
    assert not torch.equal(made.log_scale, committed[1])


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_before_the_commitment_these_optimizers_do_flip_levels(make_optimizer):
    """What the test above guards against is real."""
    made = quantizer(trained_weight(4, 3), 1)
    before = made.eval()()
    assert not torch.equal(trained(made, make_optimizer, 20).eval()(), before)


@pytest.mark.parametrize("bits", BITS)
def test_the_commitment_changes_no_code_also_where_levels_tie(bits):
    made = quantizer(trained_weight(16, 8, 3, 3), bits)
    with torch.no_grad():
        made.latent[:4] = 0.0
        made.latent[4:8] *= 1e7  # ahead by more than the margin
    before = made.collapse(made.latent).codes
    kept = made.latent[4:8].clone()
    made.set_progress(9, 10)
    assert torch.equal(made.collapse(made.latent).codes, before)
    assert torch.equal(made.latent[4:8], kept) == (bits == 1)
    logits = pair_of_logits(made.latent) * math.sqrt(2) if bits == 1 else made.latent
    best, second = logits.detach().topk(2, -1).values.unbind(-1)
    assert (best - second).min() >= 0.99 * slb.MARGIN


@pytest.mark.parametrize("bits", BITS)
def test_a_committed_latent_alone_says_so(bits):
    """In a fresh quantizer, at temperature 1, and in an average of states."""
    made = quantizer(trained_weight(4, 3, 3, 3), bits)
    fresh = quantizer(trained_weight(4, 3, 3, 3, seed=1), bits)
    assert fresh.searching
    made.set_progress(9, 10)
    fresh.load_state_dict({"latent": made.latent}, strict=False)
    assert fresh.temperature == 1
    assert not fresh.searching
    assert torch.equal(fresh.train()(), made.train()())
    fresh.train()().square().sum().backward()
    assert not fresh.latent.grad.any()


def test_a_state_goes_on_at_its_temperature_and_a_committed_one_is_committed():
    made = quantizer(trained_weight(4, 3), 2)
    made.set_progress(3, 10)
    soft = copy.deepcopy(made.state_dict())
    made.set_progress(9, 10)
    other = quantizer(trained_weight(4, 3, seed=1), 2).train()
    other.load_state_dict(made.state_dict())
    assert (other.searching, other.temperature) == (False, math.inf)
    assert not other().requires_grad
    other.load_state_dict(soft)  # a learning rate finder goes back
    assert other.searching
    assert other.temperature == pytest.approx(temperature(4, 10, other.options))
    other().sum().backward()
    assert other.latent.grad.any()


def averaged(average, made):
    """As timm does it: each value of the state, those of numbers by lerp."""
    with torch.no_grad():
        for ours, theirs in zip(
            average.state_dict().values(), made.state_dict().values(), strict=True
        ):
            assert theirs.is_floating_point()
            ours.lerp_(theirs, 0.01)


@pytest.mark.parametrize("bits", BITS)
def test_an_averaged_copy_becomes_committed_and_has_no_nan(bits):
    made = quantizer(trained_weight(4, 3, 3, 3), bits)
    average = copy.deepcopy(made)
    for epoch in range(10):
        made.set_progress(epoch, 10)
        averaged(average, made)
        if epoch == 3:
            assert average.searching
    for _ in range(50):
        averaged(average, made)
    assert 1 < average.temperature < math.inf
    assert not average.searching
    assert torch.equal(average.eval()(), made.eval()())
    assert torch.equal(average.train()(), made.train()())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_schedule_leaves_to_the_user_what_trains(bits, frozen):
    made = quantizer(trained_weight(4, 3), bits)
    made.latent.requires_grad_(not frozen)
    before = made.latent.detach().clone()
    for epoch in range(10):
        made.set_progress(epoch, 10)
        assert made.latent.requires_grad is not frozen
    assert torch.equal(made.latent, before) is frozen
    torch.testing.assert_close(made.train()(), made.eval()())
    assert not made.searching


@pytest.mark.parametrize("bits", BITS)
def test_what_is_unfrozen_after_the_commitment_is_committed_from_the_next_epoch_on(bits):
    made = quantizer(trained_weight(4, 3), bits)
    made.latent.requires_grad_(False)
    made.set_progress(8, 10)
    made.latent.requires_grad_(True)
    made.set_progress(9, 10)
    codes = made.collapse(made.latent).codes
    trained(made, sgd, 20, zeros=True)
    assert torch.equal(made.collapse(made.latent).codes, codes)


def test_a_commitment_is_final():
    made = quantizer(trained_weight(4, 3), 1)
    made.set_progress(9, 10)
    made.set_progress(0, 10)
    assert not made.searching
    assert made.temperature == math.inf
    assert not made.train()().requires_grad


def test_logits_that_are_cut_apart_are_refused():
    """The rest of a weight's logits lies in another process: FSDP keeps one row of all parameters."""
    made = quantizer(trained_weight(4, 3), 2)
    made.latent = nn.Parameter(made.latent.detach().flatten()[:23])
    with pytest.raises(QdeployError, match=r"set_progress inside FSDP\.summon_full_params"):
        made.set_progress(9, 10)


@pytest.mark.parametrize("bits", [1, 2])
def test_all_temperatures_compile_to_one_graph_and_the_commitment_to_another(bits):
    made = quantizer(trained_weight(4, 3), bits).train()
    graphs = []

    def eager(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(made, backend=eager, fullgraph=True)
    for epoch in range(10):
        made.set_progress(epoch, 10)
        torch.testing.assert_close(compiled(), made())
    assert len(graphs) == 2


def test_the_state_dict_holds_the_logits_and_the_temperature():
    assert set(quantizer(trained_weight(2, 3), 2).state_dict()) == {"latent", "inverse_temperature"}


def test_every_setting_is_printed():
    made = quantizer(trained_weight(2, 3), 2, False, t_factor=1.7, has_trained_epoch=3)
    made.set_progress(0, 10)
    for setting in ("slb", "bits=2", "temperature=2.89,", "scale=learned", "t_start_time=0.2",
                    "t_end_time=0.6", "t_factor=1.7", "has_trained_epoch=3", "start='weight'"):  # fmt: skip
        assert setting in repr(made)
