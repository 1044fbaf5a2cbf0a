"""XNOR-Net against numpy written from the paper, and through to ONNX Runtime."""

from collections import Counter
from itertools import product as every

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from float_layers import build
from torch import nn
from torch.nn import functional as F

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange, SignActivation
from qdeploy.layers.product import product_of
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.methods import ActivationSite, WeightSite
from qdeploy.methods.xnor import METHOD, ScaledSigns, XnorOptions, binarize

SHAPES = {"conv2d": (5, 6, 3, 3), "conv1d": (4, 5, 3), "linear": (3, 11)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def quantizer(weight, **options):
    return METHOD.weight(WeightSite(weight, False), 1, XnorOptions(**options))


def random_weight(*shape, size=0.3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * size


def by_hand(weight):
    """(codes, alpha) of a numpy weight with several inputs, filter by filter."""
    codes, alphas = np.empty_like(weight), []
    for index, filter_ in enumerate(weight):
        centred = np.clip(filter_ - filter_.mean(0), -1, 1)
        codes[index] = np.where(centred < 0, -1, 1)
        alphas.append(np.abs(centred).mean())
    return codes, np.array(alphas)


@every_shape
@pytest.mark.parametrize("size", [0.3, 1.5])
def test_the_weight_is_the_centred_clamped_weights_sign_times_its_mean_size(shape, size):
    weight = random_weight(*shape, size=size)
    codes, alpha = by_hand(weight.numpy().astype(np.float64))
    made = quantizer(weight)
    collapsed = made.collapse(made.latent)
    np.testing.assert_array_equal(collapsed.codes, codes)
    np.testing.assert_allclose(collapsed.scale, alpha, rtol=1e-6)
    value = codes * alpha.reshape(-1, *[1] * (codes.ndim - 1))
    np.testing.assert_allclose(made.train()().detach(), value, rtol=1e-6)


def test_alpha_is_the_scale_that_is_nearest_to_the_weight():
    weight = random_weight(4, 6, 3, 3)
    weight -= weight.mean(1, keepdim=True)
    made = quantizer(weight)
    signs = np.where(weight.numpy() < 0, -1.0, 1.0)
    for filter_, sign, alpha in zip(
        weight.numpy(), signs, made.collapse(made.latent).scale, strict=True
    ):
        best, *_ = np.linalg.lstsq(sign.reshape(-1, 1), filter_.ravel(), rcond=None)
        assert alpha.item() == pytest.approx(best.item(), rel=1e-5)


def test_the_sign_of_zero_is_plus_one():
    made = quantizer(torch.zeros(2, 5, 3, 3))
    assert (made.collapse(made.latent).codes == 1).all()
    assert (made.train()() > 0).all()


@pytest.mark.parametrize("shape", [(5, 1, 3, 3), (5, 3, 3, 3), (4, 1)])
def test_few_inputs_are_not_centred(shape):
    """Centring a depthwise layer would leave nothing of it."""
    weight = random_weight(*shape) + 0.2
    made = quantizer(weight)
    made.train()()
    assert torch.equal(made.latent, weight.clamp(-1, 1))
    assert torch.equal(made.collapse(made.latent).codes, torch.where(weight < 0, -1, 1).char())


@every_shape
def test_training_moves_the_latent_and_evaluation_does_not(shape):
    weight = random_weight(*shape) + 0.2
    made = quantizer(weight)
    before = made.collapse(made.latent)
    made.eval()()
    assert torch.equal(made.latent, weight)
    made.train()()
    np.testing.assert_allclose(made.latent.detach().mean(1), 0, atol=1e-7)
    np.testing.assert_allclose(
        made.latent.detach(), weight - weight.mean(1, keepdim=True), atol=1e-7
    )
    after = made.collapse(made.latent)
    assert torch.equal(after.codes, before.codes)
    torch.testing.assert_close(after.scale, before.scale)


def test_the_latent_is_clamped_after_it_is_centred():
    weight = random_weight(4, 6, 3, 3, size=2.0)
    made = quantizer(weight)
    made.train()()
    expected = np.clip(weight.numpy() - weight.numpy().mean(1, keepdims=True), -1, 1)
    np.testing.assert_allclose(made.latent.detach(), expected, atol=1e-6)
    assert (made.latent.abs() == 1).any()


def gradient_by_hand(weight, grad, factor):
    """dL/dW_i = factor (alpha g_i 1(|W_i| <= 1) + sign(W_i) / n sum_j g_j sign(W_j))."""
    result = np.zeros_like(weight)
    for out in range(len(weight)):
        w, g = weight[out].ravel(), grad[out].ravel()
        alpha, signs = np.abs(w).mean(), np.where(w < 0, -1, 1)
        total = sum(g[j] * signs[j] for j in range(w.size))
        for i in range(w.size):
            through = alpha * g[i] * (abs(w[i]) <= 1) + signs[i] / w.size * total
            result[out].ravel()[i] = factor * through
    return result


GRADIENTS = [
    ((5, 6, 3, 3), "paper", 1),
    ((5, 6, 3, 3), "code", (1 - 1 / 6) * 54),
    ((3, 11), "code", (1 - 1 / 11) * 11),
    ((5, 1, 3, 3), "code", 9),  # nothing is centred, and (1 - 1 / 1) would stop the training
    ((5, 1, 3, 3), "paper", 1),
]


@pytest.mark.parametrize(("shape", "gradient", "factor"), GRADIENTS)
def test_the_gradient_is_that_of_the_paper_or_of_its_code(shape, gradient, factor):
    weight, grad = random_weight(*shape, size=0.9), random_weight(*shape) + 0.1
    assert (weight.abs() > 1).any()
    weight.requires_grad_()
    (binarize(weight, gradient) * grad).sum().backward()
    expected = gradient_by_hand(weight.detach().double().numpy(), grad.double().numpy(), factor)
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", ["paper", "code"])
def test_a_layer_called_twice_gets_both_gradients(gradient):
    layer, _, _ = build("conv2d-bias")
    layer = nn.Conv2d(7, 7, 3, padding=1)
    x = torch.randn(2, 7, 5, 5)
    grads = []
    for calls in ((0,), (1,), (0, 1)):
        made = QuantizedLayer(layer, None, quantizer(layer.weight, gradient=gradient)).train()
        inputs = x, made(x).detach()
        sum(made(inputs[call]).square().sum() for call in calls).backward()
        grads.append(made.quantizer.latent.grad)
    torch.testing.assert_close(grads[2], grads[0] + grads[1], rtol=1e-4, atol=1e-3)
    made(made(x)).sum().backward()  # and where the second call reads the first


def test_training_starts_from_the_float_weight():
    weight = random_weight(4, 6, 3, 3)
    made = quantizer(weight)
    assert torch.equal(made.latent, weight)
    assert made.latent.data_ptr() != weight.data_ptr()


def test_the_sign_of_an_activation_has_no_gradient_from_one_on():
    x = torch.tensor([-3.0, -1.0, -0.999, -0.0, 0.0, 0.5, 1.0, 1.001], requires_grad=True)
    y = METHOD.activation(ActivationSite(False), 1, XnorOptions()).train()(x)
    y.backward(torch.arange(1.0, 9.0))
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]


def test_activations_by_bits():
    signed, options = ActivationSite(False), XnorOptions()
    assert isinstance(METHOD.activation(signed, 1, options), SignActivation)
    eight = METHOD.activation(ActivationSite(True), 8, options)
    assert isinstance(eight, MovingRange)
    assert eight.bits == 8
    scaled = METHOD.activation(signed, 8, XnorOptions(k_map=True))
    assert isinstance(scaled, MovingRange)


REFUSED = [
    (True, 1, False, "BatchNorm in front"),
    (True, 8, True, "BatchNorm in front"),
]


@pytest.mark.parametrize(("nonnegative", "bits", "k_map", "way_out"), REFUSED)
def test_signs_that_would_say_nothing_are_refused(nonnegative, bits, k_map, way_out):
    with pytest.raises(QdeployError, match=way_out):
        METHOD.activation(ActivationSite(nonnegative), bits, XnorOptions(k_map=k_map))


@pytest.mark.parametrize("act_bits", [1, "float"])
def test_the_map_needs_activations_of_8_bits(act_bits):
    with pytest.raises(QdeployError, match="set act_bits = 8"):
        prepared(BatchNormFirst, act_bits, k_map=True)


def scaled_by_hand(x, weight, stride, padding, dilation, groups):
    """conv(sign(x), weight) K as loops; K the mean of |x| over the inputs under the window."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    signs = np.sign(x)  # the padding is 0, not a sign
    out, each, *window = weight.shape
    reach = [dilation * (k - 1) + 1 for k in window]
    sizes = [(s - r) // stride + 1 for s, r in zip(x.shape[2:], reach, strict=True)]
    y = np.zeros((len(x), out, *sizes))
    for n, o, i, j in every(range(len(x)), range(out), *map(range, sizes)):
        first = o // (out // groups) * each
        rows = slice(i * stride, i * stride + reach[0], dilation)
        columns = slice(j * stride, j * stride + reach[1], dilation)
        seen = n, slice(first, first + each), rows, columns
        y[n, o, i, j] = (signs[seen] * weight[o]).sum() * np.abs(x[seen]).mean()
    return y


CONVS = [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (2, 1, 1, 2), (1, 1, 1, 6)]


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), CONVS)
@pytest.mark.parametrize("form", ["trained", "shipped"])
def test_a_convolution_with_the_map(stride, padding, dilation, groups, form):
    layer = nn.Conv2d(6, 12, (3, 2), stride, padding, dilation, groups)
    x = torch.randn(2, 6, 7, 8)
    scaled = ScaledSigns(product_of(layer))
    y = (scaled.shipped if form == "shipped" else scaled)(x, layer.weight, layer.bias)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = scaled_by_hand(x.numpy(), weight, stride, padding, dilation, groups)
    np.testing.assert_allclose(y.detach(), expected + bias[:, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 9), (2, 3, 9)])
def test_a_linear_layer_with_the_map(shape):
    layer, x = nn.Linear(9, 5), torch.randn(shape)
    y = ScaledSigns(product_of(layer))(x, layer.weight, layer.bias)
    sizes = np.abs(x.numpy()).mean(-1, keepdims=True)
    product = np.sign(x.numpy()) @ layer.weight.detach().numpy().T
    expected = product * sizes + layer.bias.detach().numpy()
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_pass_the_map_as_well_as_the_sign():
    layer = nn.Conv2d(4, 3, 3, padding=1, bias=False)
    x, grad = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    (ScaledSigns(product_of(layer))(found, layer.weight, None) * grad).sum().backward()
    clipped = expected.clamp(-1, 1)
    sign = clipped + (expected.sign() - clipped).detach()
    sizes = F.avg_pool2d(expected.abs().mean(1, keepdim=True), 3, 1, padding=1)
    (layer(sign) * sizes * grad).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4)


class BatchNormFirst(nn.Module):
    """BN -> conv -> ReLU, float at both ends; a pool, groups, stride and Linear in between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 64, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(64), nn.Conv2d(64, 32, 3, stride=2, groups=4)
        self.norm3, self.fc = nn.BatchNorm1d(288), nn.Linear(288, 24)
        self.norm4, self.last = nn.BatchNorm1d(24), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(self.conv1(self.norm1(x))), 2)
        x = F.relu(self.conv2(self.norm2(x))).flatten(1)
        x = F.relu(self.fc(self.norm3(x)))
        return self.last(self.norm4(x))


class ConvFirst(nn.Module):
    """conv -> BN -> ReLU, the usual order."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


def images(count=32):
    return torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(0))


def prepared(network, act_bits, **options):
    torch.manual_seed(1)
    made = qdeploy.prepare(
        network(), images(2), "xnor", 1, act_bits, first_last_float=True, **options
    )
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    for _ in range(3):  # training moves the latents and the norms
        optimizer.zero_grad()
        made.train()(images()).square().mean().backward()
        optimizer.step()
    qdeploy.calibrate(made, [images()])
    return made.eval()


def run(file, x, optimized=""):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def operators(file):
    return Counter(node.op_type for node in onnx.load(file).graph.node)


def agree(logits, made, x):
    with torch.no_grad():
        wanted = made(x).numpy()
    spread = wanted.max() - wanted.min()
    assert np.abs(logits - wanted).max() < 0.2 * spread  # signs tip over, by processor other ones
    assert (np.abs(logits - wanted) < 0.1 * spread).mean() > 0.8
    assert (logits.argmax(1) == wanted.argmax(1)).mean() > 0.9


def test_the_usual_order_is_refused_at_one_bit_alone():
    with pytest.raises(QdeployError, match=r"^conv2: xnor takes the sign"):
        prepared(ConvFirst, 1)
    prepared(ConvFirst, 8)
    prepared(ConvFirst, "float")


def test_signs_stay_on_integer_kernels_and_weights_take_a_bit_each(tmp_path):
    made = prepared(BatchNormFirst, 1)
    file = qdeploy.export(made, tmp_path / "signs.onnx", images(2))
    agree(run(file, images(), tmp_path / "optimized.onnx"), made, images())

    found = operators(tmp_path / "optimized.onnx")
    assert found["QLinearConv"] == 2
    assert found["QGemm"] == 1
    assert found["Conv"] + found["FusedConv"] == 1  # the stem
    assert found["Gemm"] + found["FusedGemm"] == 1  # the last
    assert found["BatchNormalization"] == 4

    bits = sum(layer.quantizer.latent.numel() for _, layer in made.quantized_layers())
    floats = sum(value.numel() for value in BatchNormFirst().state_dict().values()) - bits
    # 3 more numbers a channel, the table that unpacks, and the graph.
    assert file.stat().st_size < bits / 8 + 4 * floats + 120 * 12 + 6000 < bits


def test_the_map_ships_with_one_small_box(tmp_path):
    made = prepared(BatchNormFirst, 8, k_map=True)
    file = qdeploy.export(made, tmp_path / "map.onnx", images(2))
    agree(run(file, images()), made, images())
    stored = onnx.load(file).graph.initializer
    shapes = [list(value.dims) for value in stored if value.data_type == 1]
    kernels = [shape for shape in shapes if len(shape) == 4 and shape[-1] > 1]  # not the scales
    assert sorted(kernels) == [[1, 1, 3, 3], [16, 3, 3, 3]]
