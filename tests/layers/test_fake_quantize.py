import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qdeploy.layers.fake_quantize import affine_range, fake_quantize, quantize, symmetric_range

TINY = np.finfo(np.float32).tiny


def scalar(value):
    return torch.tensor(value, dtype=torch.float32)


def reference(x, scale, zero, low, high):
    """Round half to even of the float32 quotient, in numpy; numpy's rint knows no torch."""
    codes = np.rint(x / np.float32(scale)) + np.float32(zero)
    return (np.clip(codes, low, high) - np.float32(zero)) * np.float32(scale)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
@pytest.mark.parametrize(("x", "golden"), [(1.0, 0.9882355), (2.0, 1.9764705)])
def test_the_published_values_of_the_range_minus_6_to_6(low, high, x, golden):
    """To 3e-7: the published code adds the range's minimum at the end, which costs the last digit."""
    scale, zero = affine_range(scalar(-6), scalar(6), low, high)
    rounded = fake_quantize(scalar(x), scale, zero, low, high).item()
    assert rounded == pytest.approx(golden, abs=3e-7)
    assert rounded == pytest.approx({1.0: 21, 2.0: 42}[x] * 12 / 255, rel=1e-7)


@given(
    st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=30),
    st.floats(2**-10, 16, width=32),
    st.integers(2, 8),
    st.booleans(),
    st.data(),
)
def test_fake_quantize_is_the_numpy_formula(values, scale, bits, signed, data):
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    zero = data.draw(st.integers(low, high))
    x = np.array(values, np.float32)
    rounded = fake_quantize(torch.from_numpy(x), scalar(scale), scalar(zero), low, high)
    np.testing.assert_array_equal(rounded.numpy(), reference(x, scale, zero, low, high))


def test_each_channel_has_its_own_scale_and_zero_point():
    x = torch.linspace(-3, 3, 24).reshape(2, 3, 4)
    scale, zero = torch.tensor([0.1, 0.02]), torch.tensor([3.0, -7.0])
    rounded = fake_quantize(x, scale.reshape(2, 1, 1), zero.reshape(2, 1, 1), -128, 127)
    for channel in range(2):
        wanted = reference(x[channel].numpy(), scale[channel], zero[channel], -128, 127)
        np.testing.assert_array_equal(rounded[channel].numpy(), wanted)


def test_the_input_is_left_as_it_was():
    x = torch.randn(50)
    before = x.clone()
    fake_quantize(x, scalar(0.1), scalar(3), 0, 255)
    quantize(x, scalar(0.1), scalar(3), 0, 255)
    assert torch.equal(x, before)


def test_the_gradient_passes_inside_the_nudged_range_and_stops_outside():
    """Scale 12/255, zero 128: the range -6..6 is nudged to -128..127 steps, -6.0235..5.9765."""
    scale, zero = affine_range(scalar(-6), scalar(6), 0, 255)
    lowest, highest = -128 * scale.item(), 127 * scale.item()
    inside = [lowest, lowest + 1e-4, -6.0, 0.0, 1.0, highest - 1e-4, highest]
    outside = [lowest - 1e-4, highest + 1e-4, 6.0, 100.0, -100.0]
    x = torch.tensor(inside + outside, requires_grad=True)
    upstream = torch.arange(1.0, 1 + len(x))
    (fake_quantize(x, scale, zero, 0, 255) * upstream).sum().backward()
    wanted = torch.cat([upstream[: len(inside)], torch.zeros(len(outside))])
    assert torch.equal(x.grad, wanted)


def test_scale_and_zero_point_get_no_gradient():
    scale = scalar(0.1).requires_grad_()
    fake_quantize(torch.ones(3, requires_grad=True), scale, scalar(0), 0, 255).sum().backward()
    assert scale.grad is None


def quantize_dequantize_graph(low, high):
    """QuantizeLinear -> Clip -> DequantizeLinear, written with onnx.helper."""
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    code_type = TensorProto.UINT8 if low >= 0 else TensorProto.INT8
    zero = helper.make_tensor_value_info("zero", code_type, [])
    bounds = [
        helper.make_tensor("low", code_type, [], [low]),
        helper.make_tensor("high", code_type, [], [high]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("Clip", ["codes", "low", "high"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["clipped", "scale", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy")
    graph = helper.make_graph(nodes, "qdq", [x, scale, zero], [y], bounds)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def onnx_reference(model, feeds):
    return ReferenceEvaluator(model).run(None, feeds)[0]


def onnx_runtime(model, feeds):
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("runtime", [onnx_reference, onnx_runtime])
@pytest.mark.parametrize(
    ("scale", "zero", "low", "high"),
    [
        (0.25, 128, 0, 255),  # halves of the scale are exact: every second value is a tie
        (0.1, 0, 0, 255),  # where multiplying by 1 / scale goes wrong
        (12 / 255, 128, 0, 255),
        (0.3, 3, 0, 15),
        (0.7, 2, 1, 3),
        (0.0313, -5, -128, 127),
        (0.11, 0, -127, 127),
    ],
)
def test_ties_and_near_ties_fall_as_in_onnx(runtime, scale, zero, low, high):
    scale = np.float32(scale)
    halves = (np.arange(-600, 600, dtype=np.float32) / 2 * scale).astype(np.float32)
    neighbours = [np.nextafter(halves, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([halves, *neighbours, np.float32([0.0, -0.0, 1e6, -1e6])])
    code_type = np.uint8 if low >= 0 else np.int8
    feeds = {"x": x, "scale": np.asarray(scale), "zero": np.asarray(zero, code_type)}
    wanted = runtime(quantize_dequantize_graph(low, high), feeds)
    got = fake_quantize(torch.from_numpy(x), scalar(float(scale)), scalar(zero), low, high)
    np.testing.assert_array_equal(got.numpy(), wanted)


@given(st.floats(-100, 100, width=32), st.floats(0, 200, width=32), st.integers(2, 8))
def test_an_affine_range_contains_zero_exactly(low_value, width, bits):
    low, high = 0, (1 << bits) - 1
    scale, zero = affine_range(scalar(low_value), scalar(low_value + width), low, high)
    assert scale >= TINY
    assert zero.item() in range(low, high + 1)
    assert fake_quantize(scalar(0), scale, zero, low, high).item() == 0
    wanted = (max(low_value + width, 0) - min(low_value, 0)) / (high - low)
    assert scale.item() == pytest.approx(max(wanted, TINY), rel=1e-6)


@given(st.floats(-100, -0.125, width=32), st.floats(0.125, 100, width=32), st.integers(2, 8))
def test_nudging_moves_the_range_by_half_a_step_at_most(low_value, high_value, bits):
    low, high = 0, (1 << bits) - 1
    scale, zero = affine_range(scalar(low_value), scalar(high_value), low, high)
    step = scale.item()
    assert (low - zero.item()) * step == pytest.approx(low_value, abs=0.501 * step)
    assert (high - zero.item()) * step == pytest.approx(high_value, abs=0.501 * step)


@pytest.mark.parametrize(
    ("low_value", "high_value", "scale", "zero"),
    [(1.0, 5.1, 5.1 / 255, 0), (-5.1, -1.0, 5.1 / 255, 255), (0.0, 2.55, 0.01, 0)],
)
def test_a_one_sided_range_is_widened_to_zero(low_value, high_value, scale, zero):
    got = affine_range(scalar(low_value), scalar(high_value), 0, 255)
    assert got[0].item() == pytest.approx(scale)
    assert got[1].item() == zero


def test_an_empty_range_has_a_positive_scale_and_gives_zeros_with_a_gradient():
    """0 is its middle code: at the end of a range the gradient would be that of a ReLU, which is 0."""
    for low, high, middle in ((0, 255, 128), (-8, 7, 0)):
        scale, zero = affine_range(scalar(0), scalar(0), low, high)
        assert scale > 0
        assert zero == middle
        x = torch.zeros(4, requires_grad=True)
        rounded = fake_quantize(x, scale, zero, low, high)
        rounded.sum().backward()
        assert torch.equal(rounded, torch.zeros(4))
        assert torch.equal(x.grad, torch.ones(4))
    assert symmetric_range(scalar(0), -8, 7) > 0


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("narrow", [False, True])
def test_a_symmetric_range_spans_both_magnitudes(bits, narrow):
    low, high = -(1 << bits - 1) + narrow, (1 << bits - 1) - 1
    scale = symmetric_range(scalar(3), low, high)
    assert scale.item() == pytest.approx(6 / ((1 << bits) - 1 - narrow))
    if narrow:
        ends = fake_quantize(torch.tensor([-3.0, 3.0]), scale, scalar(0), low, high)
        torch.testing.assert_close(ends, torch.tensor([-3.0, 3.0]))
