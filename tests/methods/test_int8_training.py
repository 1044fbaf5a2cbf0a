"""Quantized back-propagation against autograd on the plain products, and a try at training."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from float_layers import CASES
from networks import Network, build, images
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.layers.product import product_of
from qdeploy.layers.range_norm import RangeBatchNorm
from qdeploy.methods import ActivationSite, WeightSite, find, int8_training
from qdeploy.methods.int8_training import BifurcatedProduct, SampleRange, round_at_random

METHOD = find("int8_training")
LAYERS = CASES | {
    "same": (lambda: nn.Conv2d(3, 5, (4, 3), padding="same", dilation=2), (3, 9, 8)),
    "valid": (lambda: nn.Conv2d(3, 5, 3, padding="valid"), (3, 8, 8)),
    "reflect": (lambda: nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect"), (3, 8, 7)),
    "circular-same": (
        lambda: nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular", groups=2), (4, 11),
    ),
    "linear-of-sequences": (lambda: nn.Linear(7, 3), (5, 7)),
}  # fmt: skip
every_layer = pytest.mark.parametrize("case", LAYERS)


def example(case):
    """The float layer's product, that with a forked gradient, x, weight and bias, dL/dy."""
    torch.manual_seed(0)
    make, shape = LAYERS[case]
    layer = make()
    plain, x = product_of(layer), torch.randn(4, *shape, requires_grad=True)
    tensors = [x, layer.weight] + ([] if layer.bias is None else [layer.bias])
    y = plain(x, layer.weight, layer.bias)
    return plain, BifurcatedProduct(plain, 8), tensors, torch.randn_like(y)


def gradients(product, tensors, upstream):
    x, weight, *bias = tensors
    y = product(x, weight, bias[0] if bias else None)
    return torch.autograd.grad(y, tensors, upstream)


@every_layer
def test_the_forward_pass_is_the_plain_product(case):
    plain, forked, (x, weight, *bias), _ = example(case)
    bias = bias[0] if bias else None
    torch.testing.assert_close(forked(x, weight, bias), plain(x, weight, bias), rtol=0, atol=1e-6)
    assert forked.shipped is plain


@every_layer
def test_without_rounding_the_gradients_are_those_of_autograd(case, monkeypatch):
    plain, forked, tensors, upstream = example(case)
    monkeypatch.setattr(int8_training, "round_at_random", lambda values, bits: values)
    found, wanted = (gradients(product, tensors, upstream) for product in (forked, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@every_layer
def test_only_the_gradient_to_the_input_is_rounded(case):
    plain, forked, tensors, upstream = example(case)
    torch.manual_seed(5)
    to_x, *others = gradients(forked, tensors, upstream)
    exact_to_x, *wanted = gradients(plain, tensors, upstream)
    torch.testing.assert_close(others, wanted, rtol=1e-5, atol=1e-6)
    torch.manual_seed(5)
    rounded = round_at_random(upstream, 8)
    torch.testing.assert_close(to_x, gradients(plain, tensors, rounded)[0], rtol=1e-5, atol=1e-6)
    assert (to_x - exact_to_x).abs().max() > 1e-4


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("case", ["conv2d-bias", "linear"])
def test_frozen_tensors_get_no_gradient_and_the_others_theirs(case, frozen):
    plain, forked, tensors, upstream = example(case)
    tensors = [t.detach().requires_grad_(i not in frozen) for i, t in enumerate(tensors)]
    free = [t for t in tensors if t.requires_grad]
    torch.manual_seed(1)
    found = torch.autograd.grad(forked(*tensors), free, upstream)
    wanted = torch.autograd.grad(plain(*tensors), free, upstream)
    for tensor, got, exact in zip(free, found, wanted, strict=True):
        # An eighth bit is lost on the way to x; nothing on the way to the others.
        tolerance = 0.1 if tensor is tensors[0] else 1e-5
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("case", ["conv2d-groups", "linear"])
def test_autocast_trains_too(case):
    plain, forked, tensors, upstream = example(case)
    results = []
    for product in (forked, plain):
        # Apart, since autocast before torch 2.11 keeps the casts that forked makes without gradients.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(gradients(product, tensors, upstream.bfloat16()))
    found, wanted = results
    assert [g.dtype for g in found] == [torch.float32] * len(tensors)
    for got, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=0.02, atol=0.15)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_mean_of_many_roundings_is_the_value(bits):
    torch.manual_seed(bits)
    values, draws = torch.randn(50) * 3 - 1, 4000
    step = (values.max() - values.min()) / (2**bits - 2)
    found = torch.stack([round_at_random(values, bits) for _ in range(draws)])
    # A rounding deviates by half a step at most, the mean by 5 / sqrt(draws) of that.
    assert (found.mean(0) - values).abs().max() < 5 * step / 2 / draws**0.5
    assert (found - values).abs().max() <= step
    assert ((found - values).abs() > step / 2).any()  # to the nearest, this never is


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_rounding_has_no_more_values_than_its_bits_and_keeps_zero(bits):
    for seed in range(200):
        torch.manual_seed(seed)
        values = torch.randn(4000) * 1e-6 + torch.randn(()) * 2e-6
        values[::2] = 0
        step = (values.max().clamp(min=0) - values.min().clamp(max=0)) / (2**bits - 2)
        rounded = round_at_random(values, bits)
        codes = (rounded / step).numpy()
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
        assert np.ptp(np.rint(codes)) < 2**bits
        assert not rounded[::2].any()


@pytest.mark.parametrize("value", [0.0, 3.5, -1e-30])
def test_a_tensor_of_one_value_keeps_it(value):
    values = torch.full((20,), value)
    torch.testing.assert_close(round_at_random(values, 8), values, rtol=0.005, atol=0)


def test_a_rounding_in_half_precision_keeps_the_mean():
    """256 steps and a fraction do not fit the eight bits of a bfloat16."""
    torch.manual_seed(0)
    values = torch.cat([torch.full((20000,), 0.998), torch.tensor([-1.0, 1.0])]).bfloat16()
    mean = round_at_random(values, 8)[:-2].float().mean().item()
    assert mean == pytest.approx(values[0].item(), abs=3e-4)


def test_a_batch_counts_with_the_mean_of_its_samples_extremes():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 4) * torch.arange(1, 6).view(-1, 1, 1, 1)
    made = METHOD.activation(ActivationSite(False), 8, METHOD.options(ema_decay=0.5)).train()
    assert isinstance(made, SampleRange)
    made(x)
    made(2 * x)
    made(4 * x)
    samples = x.numpy().reshape(5, -1)
    # decay 0.5: the plain mean of two batches, then a half of the newest
    factor = (1 + 2) / 2 / 2 + 4 / 2
    assert made.minimum.item() == pytest.approx(factor * samples.min(1).mean(), rel=1e-5)
    assert made.maximum.item() == pytest.approx(factor * samples.max(1).mean(), rel=1e-5)
    _, zero = made.qparams()
    assert zero == zero.round()


def test_weights_are_symmetric_per_channel_at_eight_bits():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3) + 0.5
    made = METHOD.weight(WeightSite(weight, True), 8, METHOD.options())
    collapsed = made.collapse(made.latent)
    assert not collapsed.zero.any()
    scale = 2 * weight.abs().amax((1, 2, 3)) / 255
    torch.testing.assert_close(collapsed.scale, scale)
    assert (collapsed.dequantize() - weight).abs().amax((1, 2, 3)).le(scale * 0.501).all()


def norms(prepared):
    return [m for m in prepared.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_options_reach_norms_products_and_activations():
    def prepare(**options):
        return qdeploy.prepare(build("residual"), images(2), "int8_training", **options)

    prepared = prepare(chunks=4, range_constant="paper", grad_bits=6, ema_decay=0.75)
    assert norms(prepared)
    for norm in norms(prepared):
        assert isinstance(norm, RangeBatchNorm)
        assert (norm.chunks, norm.constant) == (4, "paper")
    layers = [layer for _, layer in prepared.quantized_layers()]
    assert {layer.product.grad_bits for layer in layers} == {6}
    ranges = [m for m in prepared.modules() if isinstance(m, SampleRange)]
    assert len(ranges) > 3
    assert {m.decay for m in ranges} == {0.75}
    assert not any(isinstance(m, RangeBatchNorm) for m in norms(prepare(range_norm=False)))


def test_defaults():
    options = METHOD.options()
    assert (options.range_norm, options.range_constant, options.chunks) == (True, "code", 16)
    assert (options.grad_bits, options.ema_decay) == (8, 0.9)
    assert METHOD.weight_bits == METHOD.act_bits == (8,)


@pytest.mark.parametrize(
    "options",
    [{"grad_bits": 1}, {"chunks": 0}, {"range_constant": "mine"}, {"ema_decay": 1.0}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        METHOD.options(**options)


@pytest.mark.parametrize("constant", ["paper", "code"])
@pytest.mark.parametrize("name", ["residual", "pre_activation", "signal"])
def test_a_trained_network_evaluates_as_before_once_prepared(name, constant):
    """Gains below and at 0, odd statistics, and in pre_activation norms that follow no layer."""
    network, x = build(name).eval(), images(32)
    prepared = qdeploy.prepare(
        network, x[:2], "int8_training", act_bits="float", range_constant=constant
    )
    assert all(isinstance(norm, RangeBatchNorm) for norm in norms(prepared))
    with torch.no_grad():
        wanted, found = network(x), prepared.eval()(x)
    assert (found - wanted).abs().max() < 0.03 * wanted.std()


def test_calibration_estimates_the_ranges_anew():
    prepared = qdeploy.prepare(build("vector"), images(2), "int8_training", act_bits="float")
    (norm,) = norms(prepared)
    x = images(300)
    qdeploy.calibrate(prepared, [x[:100], x[100:]], batch_norm=True)
    (_, layer), _ = prepared.quantized_layers()
    with torch.no_grad():
        y = layer.product(x.flatten(1), layer.quantizer.eval()(), layer.bias)
        squares = []
        for part in (y[:100], y[100:]):
            chunks, scaling = norm.chunking(len(part))
            ranges = [chunk.amax(0) - chunk.amin(0) for chunk in part.tensor_split(chunks)]
            squares.append((scaling * torch.stack(ranges).mean(0)).square())
    torch.testing.assert_close(norm.running_var, (squares[0] + squares[1]) / 2)


def trained(seed):
    """The state after a few steps that start at the same weights."""
    x, labels = images(32), torch.arange(32) % 5
    prepared = qdeploy.prepare(build("residual"), x[:2], "int8_training").train()
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(prepared(x), labels).backward()
        optimizer.step()
    return prepared.state_dict()


def test_the_seed_alone_decides_the_training():
    first, second, other = (trained(seed) for seed in (3, 3, 4))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("residual", {"QLinearConv": 5, "QLinearAdd": 2, "QGemm": 1}),
        ("signal", {"QLinearConv": 1, "QGemm": 1}),
    ],
)
def test_the_file_computes_with_integers_what_training_evaluates(name, kernels, tmp_path):
    x = images(64)
    prepared = qdeploy.prepare(copy.deepcopy(build(name)), x[:2], "int8_training")
    prepared.train()(x)
    qdeploy.calibrate(prepared, x.split(16))
    path = qdeploy.export(prepared.eval(), tmp_path / "a.onnx", x[:2])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        wanted = prepared(x).numpy()
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted - wanted.mean(0)).max()
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert {kind: operators[kind] for kind in kernels} == kernels
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "BatchNormalization"} & set(operators)


def test_a_norm_that_is_called_twice_becomes_a_range_norm_once():
    network = Network(
        lambda self, x: self.fc(self.norm(self.conv2(self.norm(self.conv1(x)))).mean((2, 3))),
        conv1=nn.Conv2d(3, 6, 3),
        conv2=nn.Conv2d(6, 6, 3),
        norm=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 2),
    )
    network(images(32))
    prepared = qdeploy.prepare(
        network.eval(), images(2), "int8_training", act_bits="float", range_constant="paper"
    )
    with torch.no_grad():
        wanted, found = network(images(32)), prepared.eval()(images(32))
    assert (found - wanted).abs().max() < 0.03 * wanted.std()
