import copy

import pytest
import torch
from float_layers import CASES, build, column, multiply, rounded, row, with_its_norm
from torch import nn

from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.methods import WeightSite, find

FOLDS = ["one-conv", "two-conv"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Unrounded(WeightQuantizer):
    """Quantization switched off."""

    def __init__(self, weight):
        super().__init__()
        self.latent = nn.Parameter(weight.detach().clone())

    def relax(self, latent):
        return latent

    def collapse(self, latent):
        raise AssertionError("what is not rounded has no codes")


def simqat(layer, norm, fold, freeze_bn=None, bits=4, **options):
    method = find("simqat")
    site = WeightSite(layer.weight, norm is not None)
    quantizer = method.weight(site, bits, method.options(**options))
    return with_its_norm(QuantizedLayer(layer, norm, quantizer, fold, freeze_bn))


def unrounded(layer, norm, fold, freeze_bn=None):
    return with_its_norm(QuantizedLayer(layer, norm, Unrounded(layer.weight), fold, freeze_bn))


def sigma_running(norm):
    return (norm.running_var + norm.eps).sqrt()


def batch_moments(y):
    """Mean and biased variance of each channel."""
    rows = y.transpose(0, 1).flatten(1)
    return rows.mean(1), (rows - rows.mean(1, keepdim=True)).square().mean(1)


@pytest.mark.parametrize("case", CASES)
def test_two_conv_is_the_published_formula(case):
    """y = conv(x, fq(w')) sigma_R / sigma_B + beta - gamma mu_B / sigma_B; the bias cancels."""
    layer, norm, x = build(case)
    gamma, beta, sigma_r = norm.weight, norm.bias, sigma_running(norm)
    mean, variance = batch_moments(multiply(layer, x, layer.weight))
    sigma_b = (variance + norm.eps).sqrt()
    y = multiply(layer, x, rounded(layer.weight * column(gamma / sigma_r, layer.weight), 4))
    wanted = y * row(sigma_r / sigma_b, y) + row(beta - gamma * mean / sigma_b, y)

    quantized = simqat(*copy.deepcopy((layer, norm)), "two-conv").train()
    torch.testing.assert_close(quantized(x), wanted, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_one_conv_is_the_published_formula(case):
    """y = BN(conv(x, fq(w gain)) / gain + b); a dead channel is worked out as if gamma were 1."""
    layer, norm, x = build(case)
    gamma = torch.where(norm.weight == 0, 1, norm.weight)
    gain = gamma / sigma_running(norm)
    y = multiply(layer, x, rounded(layer.weight * column(gain, layer.weight), 4))
    y = y / row(gain, y)
    wanted = copy.deepcopy(norm).train()(y if layer.bias is None else y + row(layer.bias, y))

    quantized = simqat(*copy.deepcopy((layer, norm)), "one-conv").train()
    torch.testing.assert_close(quantized(x), wanted, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_separate_rounds_the_bare_weight(case):
    layer, norm, x = build(case)
    wanted = copy.deepcopy(norm)(multiply(layer, x, rounded(layer.weight, 4), layer.bias))
    quantized = simqat(*copy.deepcopy((layer, norm)), "none").train()
    torch.testing.assert_close(quantized(x), wanted, **CLOSE)


@pytest.mark.parametrize("fold", ["none", *FOLDS])
@pytest.mark.parametrize("case", CASES)
def test_without_rounding_folding_is_plain_batch_norm_forward_and_backward(case, fold):
    layer, norm, x = (part.double() for part in build(case))
    float_layer = nn.Sequential(*copy.deepcopy((layer, norm))).train()
    folded = unrounded(layer, norm, fold).train()
    x_float, x_folded = (x.clone().requires_grad_() for _ in range(2))
    y_float, y_folded = float_layer(x_float), folded(x_folded)
    torch.testing.assert_close(y_folded, y_float)

    upstream = torch.randn_like(y_float)
    y_float.backward(upstream)
    y_folded.backward(upstream)
    torch.testing.assert_close(x_folded.grad, x_float.grad)
    torch.testing.assert_close(folded.quantizer.latent.grad, float_layer[0].weight.grad)
    torch.testing.assert_close(folded.norm.weight.grad, float_layer[1].weight.grad)
    torch.testing.assert_close(folded.norm.bias.grad, float_layer[1].bias.grad)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("case", CASES)
def test_running_statistics_move_as_those_of_batch_norm(case, fold):
    layer, norm, x = (part.double() for part in build(case))
    float_layer = nn.Sequential(*copy.deepcopy((layer, norm))).train()
    folded = unrounded(layer, norm, fold).train()
    for step in range(3):
        float_layer(x * (step + 1))
        folded(x * (step + 1))
    for name, buffer in float_layer[1].named_buffers():
        torch.testing.assert_close(folded.norm.get_buffer(name), buffer, msg=name)


@pytest.mark.parametrize("fold", FOLDS)
def test_eight_bits_stay_near_the_float_network(fold):
    layer, norm, x = build("conv2d-bias")
    wanted = nn.Sequential(*copy.deepcopy((layer, norm))).train()(x)
    y = simqat(layer, norm, fold, bits=8).train()(x)
    assert (y - wanted).abs().max() < 0.03
    assert (y - wanted).abs().max() > 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fold", FOLDS)
def test_evaluation_multiplies_by_the_rounded_folded_weight(case, fold):
    """y = conv(x, fq(w gain)) + beta + gain (b - mu_R)."""
    layer, norm, x = build(case)
    gain = norm.weight / sigma_running(norm)
    bias = 0 if layer.bias is None else layer.bias
    shift = norm.bias + gain * (bias - norm.running_mean)
    weight = rounded(layer.weight * column(gain, layer.weight), 4)
    quantized = simqat(*copy.deepcopy((layer, norm)), fold).eval()
    torch.testing.assert_close(quantized(x), multiply(layer, x, weight, shift), **CLOSE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fold", ["none", *FOLDS])
def test_evaluation_is_what_the_integers_give(case, fold):
    layer, norm, x = build(case)
    quantized = simqat(*copy.deepcopy((layer, norm)), fold).eval()
    weight, bias = quantized.integers()
    y = multiply(layer, x, weight.dequantize(), bias)
    torch.testing.assert_close(quantized(x), y, **CLOSE)


@pytest.mark.parametrize("fold", FOLDS)
def test_folded_codes_are_those_of_the_folded_weight(fold):
    """Folding before rounding: codes of w gain, not flipped codes of w."""
    layer, norm, _ = build("conv2d-bias")
    folded = layer.weight * column(norm.weight / sigma_running(norm), layer.weight)
    weight, _ = simqat(layer, norm, fold).integers()
    torch.testing.assert_close(weight.dequantize(), rounded(folded, 4).detach())
    assert not weight.zero.any()


@pytest.mark.parametrize("fold", FOLDS)
def test_evaluation_leaves_the_statistics_alone(fold):
    layer, norm, x = build("conv2d")
    before = copy.deepcopy(norm.state_dict())
    simqat(layer, norm, fold).eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("fold", FOLDS)
def test_a_dead_channel_gives_its_shift_and_can_come_back_to_life(fold):
    layer, norm, x = build("conv2d-bias")
    quantized = simqat(layer, norm, fold)
    for mode in (True, False):
        y = quantized.train(mode)(x)
        torch.testing.assert_close(y[:, 1], torch.full_like(y[:, 1], 0.37), rtol=0, atol=1e-5)
    y = quantized.train()(x)
    (y * torch.randn_like(y)).sum().backward()
    assert norm.weight.grad[1].abs() > 0.1
    for parameter in quantized.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def trained_steps(quantized, x, steps):
    for _ in range(steps):
        quantized(x)


@pytest.mark.parametrize("fold", FOLDS)
def test_after_freeze_bn_steps_training_uses_the_running_statistics(fold):
    layer, norm, x = (part.double() for part in build("conv2d-groups"))
    folded = unrounded(layer, norm, fold, freeze_bn=2).train()
    trained_steps(folded, x, 2)
    moved = copy.deepcopy(norm.state_dict())
    assert moved["num_batches_tracked"] == 2

    y = folded(x)
    plain = copy.deepcopy(norm).eval()(layer(x))
    torch.testing.assert_close(y, plain)
    assert all(torch.equal(value, moved[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("fold", FOLDS)
def test_frozen_training_gives_what_evaluation_gives(fold):
    layer, norm, x = build("conv2d-groups")
    quantized = simqat(layer, norm, fold, freeze_bn=0)
    torch.testing.assert_close(quantized.train()(x), quantized.eval()(x))


def test_freezing_trains_gain_and_shift_on():
    layer, norm, x = (part.double() for part in build("conv2d-bias"))
    plain_layer, plain_norm = copy.deepcopy((layer, norm))
    plain_norm.eval()(plain_layer(x)).square().sum().backward()
    unrounded(layer, norm, "two-conv", freeze_bn=0).train()(x).square().sum().backward()
    torch.testing.assert_close(norm.weight.grad, plain_norm.weight.grad)
    torch.testing.assert_close(norm.bias.grad, plain_norm.bias.grad)
    torch.testing.assert_close(layer.bias.grad, plain_layer.bias.grad)


def test_steps_towards_the_freeze_survive_the_state_dict():
    _, _, x = build("conv2d")
    first = simqat(*build("conv2d")[:2], "two-conv", freeze_bn=3).train()
    trained_steps(first, x, 2)
    second = simqat(*build("conv2d", seed=1)[:2], "two-conv", freeze_bn=3).train()
    second.load_state_dict(first.state_dict())
    trained_steps(second, x, 2)
    assert second.norm.num_batches_tracked == 3


def test_evaluation_does_not_count_towards_the_freeze():
    layer, norm, x = build("conv2d")
    quantized = simqat(layer, norm, "two-conv", freeze_bn=3).eval()
    trained_steps(quantized, x, 5)
    assert quantized.steps == 0


@pytest.mark.parametrize("fold", FOLDS)
def test_calibration_measures_the_statistics_also_after_the_freeze(fold):
    """Norms in training mode, weights in evaluation mode: what qdeploy.calibrate does."""
    layer, norm, x = build("conv2d")
    quantized = simqat(layer, norm, fold, freeze_bn=0).eval()
    norm.reset_running_stats()
    norm.momentum = None
    norm.train()
    quantized(x)
    assert norm.num_batches_tracked == 1
    mean, _ = batch_moments(layer(x))
    torch.testing.assert_close(norm.running_mean, mean, rtol=0.2, atol=0.1)


@pytest.mark.parametrize("fold", FOLDS)
def test_without_a_norm_there_is_nothing_to_fold(fold):
    layer, _, x = build("conv2d-bias")
    quantized = simqat(layer, None, fold).train()
    wanted = multiply(layer, x, rounded(layer.weight, 4), layer.bias)
    torch.testing.assert_close(quantized(x), wanted, **CLOSE)
    assert quantized.fold == "none"


@pytest.mark.parametrize("fold", ["none", *FOLDS])
def test_a_norm_without_gain_and_shift(fold):
    layer, _, x = build("conv2d-bias")
    norm = nn.BatchNorm2d(7, affine=False)
    wanted = copy.deepcopy(norm).train()(layer(x))
    quantized = simqat(layer, norm, fold, bits=8)
    torch.testing.assert_close(quantized.train()(x), wanted, rtol=0, atol=0.05)
    quantized.eval()
    weight, bias = quantized.integers()
    y = multiply(layer, x, weight.dequantize(), bias)
    torch.testing.assert_close(quantized(x), y, **CLOSE)
