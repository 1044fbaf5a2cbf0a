import numpy as np
import pytest
import torch
from float_layers import parts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from qdeploy.layers.activation import MovingRange
from qdeploy.methods import ActivationSite, WeightSite, find

SIMQAT = find("simqat")
BITS = range(2, 9)
TINY = np.finfo(np.float32).tiny
WEIGHTS = arrays.arrays(
    np.float32, (3, 2, 2, 2), elements=st.floats(-4, 4, width=32, allow_subnormal=False)
)


def quantizer(weight, bits=8, **options):
    site = WeightSite(torch.as_tensor(weight), normalized=False)
    return SIMQAT.weight(site, bits, SIMQAT.options(**options))


def reference(weight, bits, symmetric, per_channel, narrow):
    """(codes, scale, zero) by Krishnamoorthi's formulas, in float32 numpy."""
    low, high = -(1 << bits - 1) + narrow, (1 << bits - 1) - 1
    rows = weight.reshape(len(weight), -1)
    lowest, highest = rows.min(1), rows.max(1)
    if not per_channel:
        lowest, highest = np.full(3, rows.min()), np.full(3, rows.max())
    if symmetric:
        magnitude = np.maximum(np.abs(lowest), np.abs(highest))
        scale, zero = 2 * magnitude / np.float32(high - low), np.zeros(3, np.float32)
    else:
        lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
        scale = (highest - lowest) / np.float32(high - low)
    scale = np.maximum(scale, TINY)
    if not symmetric:
        zero = np.clip(np.rint(low - lowest / scale), low, high)
        zero = np.where(lowest == highest, (low + high + 1) // 2, zero)  # all zeros: the middle
    codes = np.clip(np.rint(rows / scale[:, None]) + zero[:, None], low, high)
    return codes.reshape(weight.shape), scale, zero


@given(WEIGHTS, st.sampled_from(BITS), st.booleans(), st.booleans(), st.booleans())
def test_codes_scale_and_zero_point_are_the_published_ones(
    weight, bits, symmetric, per_channel, narrow
):
    made = quantizer(
        weight,
        bits,
        weight_symmetric=symmetric,
        weight_per_channel=per_channel,
        weight_narrow_range=narrow,
    )
    codes, scale, zero = parts(made.collapse(made.latent).checked())
    wanted = reference(weight, bits, symmetric, per_channel, narrow)
    np.testing.assert_allclose(scale.detach(), wanted[1], rtol=3e-7)
    np.testing.assert_array_equal(zero, wanted[2])
    # One unit in the last place of the scale may tip a tie.
    difference = np.abs(codes.numpy() - wanted[0])
    assert difference.max() <= 1


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_of_least_error_is_that_of_brute_force(bits, symmetric, per_channel):
    weight = torch.randn(3, 900, generator=torch.Generator().manual_seed(0))
    options = {"weight_symmetric": symmetric, "weight_per_channel": per_channel}
    made = quantizer(weight, bits, weight_range="mse", **options)
    plain = quantizer(weight, bits, **options)

    def errors(dequantized):
        return (dequantized - weight).square().sum(1).numpy()

    tried = []
    for fraction in np.linspace(0.2, 1.15, 200):
        scale, zero = plain.qparams(fraction * weight)
        scale, zero = scale[:, None], zero[:, None]
        low, high = made.grid.lowest, made.grid.highest
        codes = (torch.round(weight / scale) + zero).clamp(low, high)
        tried.append(errors((codes - zero) * scale))
    found, widest = errors(made.eval()().detach()), errors(plain.eval()().detach())
    if per_channel:
        assert (found <= 1.1 * np.min(tried, 0)).all()
        assert (found <= widest + 1e-6).all()
    else:
        assert found.sum() <= 1.1 * np.sum(tried, 1).min()
    if bits < 8:
        assert found.sum() < 0.95 * widest.sum()


def test_the_range_of_least_error_of_a_dead_channel_is_empty():
    weight = torch.zeros(2, 5)
    assert torch.equal(quantizer(weight, 4, weight_range="mse").eval()(), weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_what_trains_is_what_ships_bit_for_bit(bits, symmetric, per_channel, narrow):
    torch.manual_seed(bits)
    made = quantizer(
        torch.randn(4, 3, 3, 3),
        bits,
        weight_symmetric=symmetric,
        weight_per_channel=per_channel,
        weight_narrow_range=narrow,
    )
    trained, shipped = made.train()(), made.eval()()
    assert torch.equal(trained, shipped)
    scale = made.collapse(made.latent).scale
    error = (trained - made.latent).abs().flatten(1).amax(1)
    # Half a step, and another where a symmetric range does not reach its end, or one is nudged.
    assert (error <= 1.0001 * scale).all()
    assert (error > 0.2 * scale).all()


def test_one_scale_for_all_channels_or_one_each():
    weight = torch.tensor([[1.0, -0.5], [100.0, 20.0]])
    each = quantizer(weight).collapse(weight).scale
    torch.testing.assert_close(each, torch.tensor([2 / 255, 200 / 255]))
    every = quantizer(weight, weight_per_channel=False).collapse(weight).scale
    torch.testing.assert_close(every, torch.tensor([200 / 255, 200 / 255]))


def test_the_range_of_an_asymmetric_channel_includes_zero():
    weight = torch.tensor([[1.0, 3.0], [-3.0, -1.0]])
    codes, scale, zero = parts(quantizer(weight, weight_symmetric=False).collapse(weight))
    torch.testing.assert_close(scale, torch.full((2,), 3 / 255))
    assert zero.tolist() == [-128, 127]
    assert codes.tolist() == [[-43, 127], [-128, 42]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dead_channels_stay_zero_and_harm_nobody(symmetric, per_channel):
    weight = torch.zeros(3, 5)
    weight[1] = torch.linspace(-1, 1, 5)
    options = {"weight_symmetric": symmetric, "weight_per_channel": per_channel}
    for values in (weight, torch.zeros(3, 5)):
        made = quantizer(values, **options).train()
        made().square().sum().backward()
        assert torch.isfinite(made.latent.grad).all()
        _, scale, zero = parts(made.collapse(made.latent).checked())
        assert (scale > 0).all()
        torch.testing.assert_close(made.eval()(), values, rtol=0, atol=0.005)
        assert torch.equal(made()[0], torch.zeros(5))
        assert set(zero.tolist()) <= set(made.grid.codes)


def test_the_gradient_passes_straight_through_inside_the_range():
    """2 bits, codes -2..1, scale 2/3: values above 2/3 are outside."""
    weight = torch.tensor([[-1.0, -0.4, 0.1, 0.6, 0.7, 1.0]])
    made = quantizer(weight, bits=2).train()
    upstream = torch.arange(1.0, 7.0)
    (made() * upstream).sum().backward()
    assert made.latent.grad.tolist() == [[1, 2, 3, 4, 0, 0]]


def test_the_weight_is_a_copy_of_the_float_weight():
    weight = torch.nn.Parameter(torch.randn(2, 3))
    made = quantizer(weight)
    assert torch.equal(made.latent, weight)
    made.latent.data.zero_()
    assert weight.abs().sum() > 0


def test_rounding_starts_after_quant_delay_steps_and_evaluation_always_rounds():
    made = quantizer(torch.randn(2, 9), bits=2, quant_delay=2)
    rounded = made.eval()()
    assert len(rounded[0].unique()) <= 4
    steps = [torch.equal(made.train()(), made.latent) for _ in range(4)]
    assert steps == [True, True, False, False]
    assert torch.equal(made.train()(), rounded)


def test_the_delay_goes_on_where_the_state_dict_left_it():
    first = quantizer(torch.randn(2, 9), bits=2, quant_delay=2).train()
    first()
    second = quantizer(torch.randn(2, 9), bits=2, quant_delay=2).train()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(), first.latent)
    assert not torch.equal(second(), first.latent)


def test_the_activation_quantizer_takes_its_options():
    options = SIMQAT.options(
        act_symmetric=True, act_narrow_range=True, ema_decay=0.5, quant_delay=4
    )
    made = SIMQAT.activation(ActivationSite(nonnegative=True), 3, options)
    assert isinstance(made, MovingRange)
    assert (made.bits, made.symmetric, made.decay, made.quant_delay) == (3, True, 0.5, 4)
    assert made.grid.codes == tuple(range(1, 8))


def test_defaults_are_the_effective_published_ones():
    options = SIMQAT.options()
    assert (options.weight_symmetric, options.weight_per_channel) == (True, True)
    assert (options.act_symmetric, options.weight_narrow_range) == (False, False)
    assert (options.quant_delay, options.fold_mode, options.freeze_bn_steps) == (0, "none", None)
    assert SIMQAT.weight_bits == SIMQAT.act_bits == tuple(BITS)
    assert quantizer(torch.ones(1, 2)).grid.codes == tuple(range(-128, 128))


def test_fold_and_freeze_reach_the_layer():
    options = SIMQAT.options(fold="two-conv", freeze_bn=900)
    assert (options.fold_mode, options.freeze_bn_steps) == ("two-conv", 900)


@pytest.mark.parametrize(
    "options",
    [{"fold": "three-conv"}, {"quant_delay": -1}, {"ema_decay": 1.0}, {"ema_decay": -0.1},
     {"freeze_bn": -1, "fold": "two-conv"}, {"freeze_bn": 9}, {"weight_symetric": True}],
)  # fmt: skip
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        SIMQAT.options(**options)


def test_every_setting_is_printed():
    printed = repr(quantizer(torch.ones(1, 2), bits=4, weight_narrow_range=True, quant_delay=3))
    for setting in ("bits=4", "symmetric=True", "per_channel=True", "Grid(-7..7)", "=3"):
        assert setting in printed
