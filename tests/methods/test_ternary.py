import math

import numpy as np
import onnx
import pytest
import torch
from float_layers import parts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from networks import build, images
from onnx_files import assert_the_file_predicts_what_evaluation_does, calibrated, exported
from pydantic import ValidationError

import qdeploy
from qdeploy.deploy.inspect import inspect
from qdeploy.errors import QdeployError
from qdeploy.grid import Grid
from qdeploy.layers.activation import MovingRange
from qdeploy.methods import ActivationSite, WeightSite, find
from qdeploy.proof.description import describe

TERNARY = find("ternary")
WEIGHTS = arrays.arrays(
    np.float32, (3, 2, 2, 2), elements=st.floats(-4, 4, width=32, allow_subnormal=False)
)


def quantizer(weight, **options):
    site = WeightSite(torch.as_tensor(weight), normalized=False)
    return TERNARY.weight(site, 2, TERNARY.options(**options))


def collapsed(weight, **options):
    made = quantizer(weight, **options)
    return made.collapse(made.latent)


def reference(weight):
    """(codes, alpha) by section 2.2 of the paper, in float64 numpy."""
    weight = weight.astype(np.float64)
    delta = 0.7 * np.abs(weight).sum() / weight.size
    codes = np.where(weight > delta, 1, np.where(weight < -delta, -1, 0))
    kept = np.abs(weight[np.abs(weight) > delta])
    return codes, kept.sum() / len(kept) if len(kept) else 0.0


def normal(count, sigma=1.0):
    """Evenly spaced quantiles of a normal distribution, shuffled."""
    random = torch.Generator().manual_seed(0)
    shares = (torch.randperm(count, generator=random) + 0.5).double() / count
    return (sigma * torch.special.ndtri(shares)).float()


@given(WEIGHTS)
def test_codes_and_scale_are_the_published_ones(weight):
    codes, scale, zero = parts(collapsed(weight))
    wanted, alpha = reference(weight)
    # A weight on the threshold itself may fall to either side.
    delta = 0.7 * np.abs(weight.astype(np.float64)).mean()
    clear = np.abs(np.abs(weight) - delta) > 1e-6 * delta
    np.testing.assert_array_equal(codes.numpy()[clear], wanted[clear])
    if clear.all():
        np.testing.assert_allclose(scale.numpy(), max(alpha, 1e-38), rtol=1e-5)
    assert not zero.any()


def test_a_layer_by_hand():
    """Mean size 1, threshold 0.7: kept are 2, -1.2, 0.8 and -1, whose mean size is 1.25."""
    codes, scale, _ = parts(collapsed(torch.tensor([[2.0, -0.6, 0.4], [-1.2, 0.8, -1.0]])))
    assert codes.tolist() == [[1, 0, 0], [-1, 1, -1]]
    assert scale.tolist() == pytest.approx([1.25, 1.25])


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("per_channel", [False, True])
def test_normal_weights_have_the_closed_form_share_of_zeros_and_scale(sigma, per_channel):
    """delta = 0.7 sqrt(2 / pi) sigma; a scale over the count of zeros would be 1.36 times as large."""
    delta = 0.7 * math.sqrt(2 / math.pi)
    zeros = math.erf(delta / math.sqrt(2))
    alpha = math.sqrt(2 / math.pi) * math.exp(-(delta**2) / 2) / (1 - zeros)
    assert (delta, zeros, alpha) == pytest.approx((0.5585, 0.4235, 1.1842), abs=1e-4)
    weight = torch.stack([normal(20000, sigma), normal(20000, sigma)])
    codes, scale, _ = parts(collapsed(weight, per_channel=per_channel))
    assert (codes == 0).float().mean().item() == pytest.approx(zeros, abs=1e-3)
    assert scale.tolist() == pytest.approx([alpha * sigma] * 2, rel=1e-3)


def test_uniform_weights_have_the_closed_form_share_of_zeros_and_scale():
    """On -1..1 delta is 0.35, and the mean of 0.35..1 is 0.675."""
    codes, scale, _ = parts(collapsed(torch.linspace(-1, 1, 10000).reshape(2, -1)))
    assert (codes == 0).float().mean().item() == pytest.approx(0.35, abs=1e-3)
    assert scale.tolist() == pytest.approx([0.675] * 2, rel=1e-3)


@given(WEIGHTS)
def test_no_other_scale_is_nearer_to_the_weight(weight):
    codes, scale, _ = parts(collapsed(weight))
    codes = codes.numpy().astype(np.float64)

    def error(alpha):
        return ((weight - alpha * codes) ** 2).sum()

    alpha = float(scale[0])
    for other in (0.98 * alpha, 1.02 * alpha):
        assert error(alpha) <= error(other) + 1e-9


def test_one_scale_for_the_layer_or_one_for_each_channel():
    weight = torch.stack([normal(999), 10 * normal(999)])
    layer, channels = collapsed(weight), collapsed(weight, per_channel=True)
    assert layer.scale[0] == layer.scale[1]
    assert (layer.codes[0] == 0).float().mean() > 0.95
    torch.testing.assert_close(channels.scale[1], 10 * channels.scale[0])
    assert torch.equal(channels.codes[0], channels.codes[1])


@pytest.mark.parametrize("per_channel", [False, True])
def test_zero_and_equal_weights_divide_by_nothing(per_channel):
    for size in (0.0, 1e-40, 0.3):
        codes, scale, _ = parts(collapsed(torch.full((2, 5), -size), per_channel=per_channel))
        assert (scale > 0).all()
        assert torch.isfinite(scale).all()
        if size == 0.3:
            assert (codes == -1).all()
            assert scale.tolist() == pytest.approx([0.3, 0.3])
        elif size == 0:
            assert not codes.any()


def test_a_dead_channel_among_others_stays_zero_and_harms_nobody():
    weight = torch.stack([torch.zeros(500), normal(500)])
    for per_channel, delta in ((False, 0.7 * 0.3989), (True, 0.7 * 0.7979)):
        made = quantizer(weight, per_channel=per_channel).eval()
        assert torch.equal(made()[0], torch.zeros(500))
        assert torch.equal(made()[1] == 0, weight[1].abs() < delta)


@given(WEIGHTS, st.booleans())
def test_the_gradient_goes_straight_to_the_float_weight(weight, per_channel):
    made = quantizer(weight, per_channel=per_channel).train()
    upstream = torch.linspace(-2, 3, weight.size).reshape(weight.shape)
    (made() * upstream).sum().backward()
    assert torch.equal(made.latent.grad, upstream)


@given(WEIGHTS, st.booleans())
def test_what_trains_is_what_ships_bit_for_bit(weight, per_channel):
    made = quantizer(weight, per_channel=per_channel)
    assert torch.equal(made.train()(), made.eval()())


def test_it_starts_from_a_copy_of_the_float_weight():
    weight = torch.nn.Parameter(torch.randn(2, 3))
    made = quantizer(weight)
    assert torch.equal(made.latent, weight)
    made.latent.data.zero_()
    assert weight.abs().sum() > 0
    assert list(made.state_dict()) == ["latent"]


def test_what_it_can_do():
    assert TERNARY.weight_bits == (2,)
    assert TERNARY.act_bits == tuple(range(2, 9))
    assert quantizer(torch.ones(1, 2)).grid == Grid((-1, 0, 1))
    assert not TERNARY.options().per_channel
    assert "per_channel=True" in repr(quantizer(torch.ones(1, 2), per_channel=True))
    made = TERNARY.activation(ActivationSite(nonnegative=True), 4, TERNARY.options())
    assert isinstance(made, MovingRange)
    assert made.bits == 4
    with pytest.raises(ValidationError):
        TERNARY.options(threshold=0.7)
    with pytest.raises(QdeployError, match="no weight_bits = 3"):
        qdeploy.prepare(build("plain"), images(2), "ternary", 3)


def test_the_file_predicts_what_evaluation_does(tmp_path):
    prepared = calibrated(build("residual"), "ternary", 2, 8)
    file = exported(prepared, tmp_path)
    assert_the_file_predicts_what_evaluation_does(file, prepared, images(64), 0.03)
    integer = {"QLinearConv": 5, "QLinearAdd": 2, "QGemm": 1, "QuantizeLinear": 1}
    assert {kind: file.operators[kind] for kind in integer} == integer


def test_five_weights_share_a_byte_of_the_file_beside_float_activations_too(tmp_path):
    prepared = calibrated(build("vector"), "ternary", 2, "float")
    file = exported(prepared, tmp_path)
    assert_the_file_predicts_what_evaluation_does(file, prepared, images(64), 1e-4)
    weights = {"1": 9 * 192, "4": 5 * 9}
    packed = [
        math.prod(tensor.dims)
        for tensor in file.proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.UINT8 and tensor.dims
    ]
    assert packed == [math.ceil(weights["1"] / 5)]  # the other is smaller as int8
    layers = {
        layer.name: layer
        for layer in describe(qdeploy.convert(prepared), inspect(tmp_path / "model.onnx").layers)
    }
    assert layers["1"].levels.keys() == {-1, 0, 1}
    for name, channels in (("1", 9), ("4", 5)):
        bound = math.ceil(weights[name] * math.log2(3) / 8)
        assert layers[name].bound_bytes == bound + 8 * channels
        assert layers[name].weight_bytes > bound
