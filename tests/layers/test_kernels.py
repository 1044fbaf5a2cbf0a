"""The formulas of ONNX Runtime's integer kernels, against the kernels of the version that is installed.

Random codes, scales and zero points, many thousand values a kernel, and not one may differ.
"""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from qdeploy.layers import kernels
from qdeploy.layers.integer_operators import IntegerLogistic, IntegerMatrixProduct, IntegerSum
from qdeploy.layers.kernels import Step

ROUNDS = 40


def run(
    operator, *inputs, domain="com.microsoft", output=TensorProto.UINT8, constants=(), **attributes
):
    """One node in ONNX Runtime, whose arrays are inputs and whose numbers are constants."""
    names = [f"input_{index}" for index in range(len(inputs))]
    fed = {
        name: value
        for index, (name, value) in enumerate(zip(names, inputs, strict=True))
        if np.ndim(value) and index not in constants
    }
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in fed.items()
    ]
    held = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(names, inputs, strict=True)
        if name not in fed
    ]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    result = helper.make_tensor_value_info("y", output, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "kernel", declared, [result], held)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, fed)[0]


class Draws:
    """Random tensors on random steps."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)

    def scale(self, low, high):
        return float(np.float32(2 ** self.random.uniform(low, high)))

    def zero(self):
        return int(self.random.integers(0, 256)) if self.random.random() < 0.6 else 0

    def codes(self, *shape):
        return self.random.integers(0, 256, shape).astype(np.uint8)

    def weight(self, *shape):
        """Codes whose products no processor saturates."""
        return self.random.integers(-64, 65, shape).astype(np.int8)


def onnx(step, kind=np.uint8):
    return np.float32(step.scale), kind(step.zero)


def centred(codes, step):
    return torch.from_numpy(codes.astype(np.float32)) - step.zero


def assert_same(found, out, expected):
    assert np.array_equal(found.numpy() + out.zero, expected)


SHAPES = [
    ((4, 1000), (4, 1000)),
    ((2, 8, 9, 9), (2, 8, 1, 1)),
    ((2, 8, 1, 1), (2, 8, 9, 9)),
    ((2, 1, 9, 9), (2, 8, 1, 1)),
    ((2, 8, 3, 3), (1, 8, 3, 3)),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_add(shapes):
    draws = Draws()
    for _ in range(ROUNDS):
        a, b = (draws.codes(*shape) for shape in shapes)
        steps = [Step(draws.scale(-8, 1), draws.zero()) for _ in range(2)]
        out = Step(draws.scale(-7, 2), draws.zero())
        module = IntegerSum(torch.add, steps, out)
        found = module(*(centred(x, s) * s.scale for x, s in zip((a, b), steps, strict=True)))
        expected = run("QLinearAdd", a, *onnx(steps[0]), b, *onnx(steps[1]), *onnx(out))
        assert_same(torch.round(found / out.scale), out, expected)


@pytest.mark.parametrize("shapes", SHAPES)
def test_multiply(shapes):
    draws = Draws()
    for _ in range(ROUNDS):
        a, b = (draws.codes(*shape) for shape in shapes)
        first, second = (Step(draws.scale(-8, 1), draws.zero()) for _ in range(2))
        product = first.scale * second.scale
        out = Step(float(np.float32(product * draws.scale(3, 9))), draws.zero())
        found = kernels.multiplied(centred(a, first), first, centred(b, second), second, out)
        expected = run("QLinearMul", a, *onnx(first), b, *onnx(second), *onnx(out))
        assert_same(found, out, expected)


@pytest.mark.parametrize("size", [(7, 7), (4, 4), (1, 12)])
def test_global_average(size):
    draws = Draws()
    for _ in range(ROUNDS):
        x, step = draws.codes(2, 64, *size), Step(draws.scale(-8, 1), draws.zero())
        out = Step(float(np.float32(step.scale * draws.scale(-4, 0))), draws.zero())
        found = kernels.globally_averaged(centred(x, step), step, out)
        expected = run("QLinearGlobalAveragePool", x, *onnx(step), *onnx(out), channels_last=0)
        assert_same(found, out, expected[:, :, 0, 0])


def test_global_average_of_more_than_float32_adds_up():
    """520 x 520 codes add up beyond 2^24; each average lies next to a tie, so that sums tell."""
    draws = Draws()
    for _ in range(ROUNDS):
        codes = np.maximum(draws.codes(1, 1, 520, 520), 200)
        step, mean = Step(0.01, 0), float(codes.mean(dtype=np.float64))
        out = Step(float(np.float32(step.scale * mean / 100.5)), 3)
        found = kernels.globally_averaged(centred(codes, step), step, out)
        expected = run("QLinearGlobalAveragePool", codes, *onnx(step), *onnx(out), channels_last=0)
        assert_same(found, out, expected[:, :, 0, 0])


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil", "whole"),
    [
        (3, 2, 1, False, False),
        (3, 2, 1, False, True),
        (2, 2, 0, False, True),
        (3, 2, 0, True, True),
    ],
)
def test_average(kernel, stride, padding, ceil, whole):
    draws = Draws()
    for _ in range(ROUNDS):
        x, step = draws.codes(2, 8, 15, 15), Step(draws.scale(-8, 1), draws.zero())
        out = Step(float(np.float32(step.scale * draws.scale(-3, 0))), draws.zero())
        values = centred(x, step) * step.scale
        means = F.avg_pool2d(values, kernel, stride, padding, ceil, whole)
        expected = run(
            "QLinearAveragePool", x, *onnx(step), *onnx(out), kernel_shape=[kernel] * 2,
            strides=[stride] * 2, pads=[padding] * 4, ceil_mode=int(ceil), count_include_pad=int(whole),
        )  # fmt: skip
        assert_same(kernels.averaged(means, out), out, expected)


def test_logistic():
    x = np.linspace(-20, 20, 200_001, dtype=np.float32)
    expected = run("Sigmoid", x, domain="", output=TensorProto.FLOAT)
    assert np.array_equal(kernels.logistic(torch.from_numpy(x)).numpy(), expected)


def test_logistic_of_codes():
    draws, x = Draws(), np.arange(256).astype(np.uint8)
    for _ in range(4 * ROUNDS):
        step, out = Step(draws.scale(-8, -1), draws.zero()), Step(draws.scale(-8.5, -7), 0)
        found = IntegerLogistic(torch.sigmoid, [step], out)(centred(x, step) * step.scale)
        expected = run("QLinearSigmoid", x, *onnx(step), *onnx(out))
        assert_same(torch.round(found / out.scale), out, expected)


def matrices(draws):
    inner = int(draws.random.integers(4, 300))
    a, b = draws.codes(2, 3, 20, inner), draws.codes(2, 3, inner, 24)
    return a, b, *(Step(draws.scale(-8, 1), draws.zero()) for _ in range(2))


def test_matrix_product_to_codes():
    draws = Draws()
    for _ in range(ROUNDS):
        a, b, first, second = matrices(draws)
        scale = first.scale * second.scale * draws.scale(5, 10)
        out = Step(float(np.float32(scale)), draws.zero())
        module = IntegerMatrixProduct(torch.matmul, [first, second], out)
        found = module(centred(a, first) * first.scale, centred(b, second) * second.scale)
        expected = run("QLinearMatMul", a, *onnx(first), b, *onnx(second), *onnx(out), domain="")
        assert_same(torch.round(found / out.scale), out, expected)


def test_matrix_product_to_floats():
    draws = Draws()
    for _ in range(ROUNDS):
        a, b, first, second = matrices(draws)
        module = IntegerMatrixProduct(torch.matmul, [first, second], None)
        found = module(centred(a, first) * first.scale, centred(b, second) * second.scale)
        (a_scale, a_zero), (b_scale, b_zero) = onnx(first), onnx(second)
        expected = run(
            "MatMulIntegerToFloat", a, b, a_scale, b_scale, a_zero, b_zero, output=TensorProto.FLOAT
        )
        assert np.array_equal(found.numpy(), expected)


def sums_of(x, step, weight, bias):
    """The accumulators of a Linear, in whole numbers."""
    return torch.from_numpy((x.astype(np.int64) - step.zero) @ weight.astype(np.int64).T + bias)


@pytest.mark.parametrize("inner", [20, 700])
def test_linear_to_codes_and_to_floats(inner):
    draws = Draws()
    for _ in range(ROUNDS):
        x, weight = draws.codes(64, inner), draws.weight(24, inner)
        bias = draws.random.integers(-(2**20), 2**20, 24).astype(np.int32)
        step, factor = Step(draws.scale(-8, 0), draws.zero()), draws.scale(-10, -4)
        sums = sums_of(x, step, weight, bias)
        product = np.float32(step.scale) * np.float32(factor)
        given = (x, *onnx(step), weight, np.float32(factor), np.int8(0), bias)
        floats = run("QGemm", *given, constants=(3, 6), output=TensorProto.FLOAT, transB=1)
        assert np.array_equal(kernels.scaled(sums, float(product)).numpy(), floats)
        out = Step(float(np.float32(product * sums.abs().max().item() / 120)), draws.zero())
        codes = run("QGemm", *given, *onnx(out), constants=(3, 6), transB=1)
        multiplier = float(product / np.float32(out.scale))
        assert_same(kernels.requantized(sums, multiplier, out.zero), out, codes)


@pytest.mark.parametrize("groups", [1, 8])
def test_convolution(groups):
    draws = Draws()
    for _ in range(ROUNDS):
        x, weight = draws.codes(2, 8, 12, 12), draws.weight(16, 8 // groups, 3, 3)
        step, scales = (
            Step(draws.scale(-8, 0), draws.zero()),
            np.float32(2.0) ** draws.random.uniform(-10, -4, 16).astype(np.float32),
        )
        bias = draws.random.integers(-(2**17), 2**17, 16).astype(np.int32)
        sums = F.conv2d(
            centred(x, step).double(), torch.from_numpy(weight.astype(np.float64)),
            torch.from_numpy(bias.astype(np.float64)), padding=1, groups=groups,
        )  # fmt: skip
        product = np.float32(step.scale) * scales
        out = Step(float(np.float32(sums.abs().max().item() * product.mean() / 200)), draws.zero())
        multiplier = torch.from_numpy(product / np.float32(out.scale)).reshape(1, -1, 1, 1)
        expected = run(
            "QLinearConv", x, *onnx(step), weight, scales, np.zeros(16, np.int8), *onnx(out), bias,
            domain="", constants=(3, 4, 5, 8), pads=[1] * 4, group=groups,
        )  # fmt: skip
        assert_same(kernels.requantized(sums, multiplier, out.zero), out, expected)
