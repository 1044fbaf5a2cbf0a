import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Network, build, conv, images
from onnx_files import assert_the_file_predicts_what_evaluation_does, exported
from quantizers import activations
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange
from qdeploy.methods import ActivationSite, WeightSite, find
from qdeploy.methods.lsq import LsqActivation, positive
from qdeploy.training.optimizer import parameter_groups

LSQ = find("lsq")
BITS = range(2, 9)
every_width = pytest.mark.parametrize("bits", BITS)
both_kinds = pytest.mark.parametrize("per_channel", [False, True], ids=["layer", "channel"])
both_signs = pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "relu"])


def weight_quantizer(weight, bits=4, **options):
    site = WeightSite(torch.as_tensor(weight), normalized=False)
    return LSQ.weight(site, bits, LSQ.options(**options))


def activation_quantizer(bits=4, nonnegative=True):
    return LSQ.activation(ActivationSite(nonnegative), bits, LSQ.options())


def limits(bits, unsigned):
    """Qn and Qp of section 2."""
    return (0, 2**bits - 1) if unsigned else (2 ** (bits - 1), 2 ** (bits - 1) - 1)


def published(v, s, qn, qp, upstream):
    """(v^, dL/dv, dL/ds without g) by equations 1, 2, 3 and 5, value by value, in float64."""
    rounded, grad_v, grad_s = np.empty_like(v), np.empty_like(v), 0.0
    for index, value in np.ndenumerate(v):
        ratio = value / s
        if ratio <= -qn:
            level, slope, passes = -qn, -qn, 0
        elif ratio >= qp:
            level, slope, passes = qp, qp, 0
        else:
            level, slope, passes = np.rint(ratio), np.rint(ratio) - ratio, 1
        rounded[index] = level * s
        grad_v[index] = upstream[index] * passes
        grad_s += upstream[index] * slope
    return rounded, grad_v, grad_s


def sample(shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


# Gradients


@every_width
@both_kinds
def test_weights_round_and_learn_as_published(bits, per_channel):
    weight, upstream = sample((3, 2, 5, 5), bits), sample((3, 2, 5, 5), 9)
    made = weight_quantizer(weight, bits, per_channel=per_channel).train()
    made.step.data.mul_(0.6)  # so that weights lie beyond both ends
    y = made()
    (y * upstream).sum().backward()
    qn, qp = limits(bits, unsigned=False)
    groups = [[0], [1], [2]] if per_channel else [[0, 1, 2]]
    assert made.step.shape == (len(groups),)
    for number, rows in enumerate(groups):
        s = made.step[number].item()
        v, u = (t[rows].double().numpy() for t in (weight, upstream))
        rounded, grad_v, grad_s = published(v, s, qn, qp, u)
        np.testing.assert_allclose(y[rows].detach(), rounded, rtol=1e-6)
        np.testing.assert_allclose(made.latent.grad[rows], grad_v, rtol=1e-6)
        g = 1 / math.sqrt(v.size * qp)
        assert made.step.grad[number].item() == pytest.approx(grad_s * g, rel=1e-3, abs=1e-5)


@every_width
@both_signs
def test_activations_round_and_learn_as_published(bits, nonnegative):
    x, upstream = sample((4, 3, 5, 5), bits), sample((4, 3, 5, 5), 9)
    x = (x.relu() if nonnegative else x).requires_grad_()
    made = activation_quantizer(bits, nonnegative).train()
    made(x.detach())
    made.step.data.mul_(0.5)
    y = made(x)
    (y * upstream).sum().backward()
    qn, qp = limits(bits, nonnegative)
    v, u = x.detach().double().numpy(), upstream.double().numpy()
    rounded, grad_v, grad_s = published(v, made.step.item(), qn, qp, u)
    np.testing.assert_allclose(y.detach(), rounded, rtol=1e-6)
    np.testing.assert_allclose(x.grad, grad_v, rtol=1e-6)
    g = 1 / math.sqrt(3 * 5 * 5 * qp)  # the features of one image
    assert made.step.grad.item() == pytest.approx(grad_s * g, rel=1e-3, abs=1e-5)


def surrogate(v, s, qn, qp, residue):
    """s (clip(v / s) + residue): what a straight-through gradient takes the rounding for."""
    return s * (np.clip(v / s, -qn, qp) + residue)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradients_are_finite_differences_of_the_straight_through_surrogate(bits):
    weight, upstream = sample((2, 40), bits), sample((2, 40), 9)
    made = weight_quantizer(weight, bits).train()
    made.step.data.mul_(0.6)
    (made() * upstream).sum().backward()
    qn, qp = limits(bits, unsigned=False)
    v, u, s = weight.double().numpy(), upstream.double().numpy(), made.step.item()
    clipped = np.clip(v / s, -qn, qp)
    residue = np.rint(clipped) - clipped
    tiny = 1e-7

    def loss(v, s):
        return (u * surrogate(v, s, qn, qp, residue)).sum()

    by_step = (loss(v, s + tiny) - loss(v, s - tiny)) / (2 * tiny)
    assert made.step.grad.item() * math.sqrt(80 * qp) == pytest.approx(by_step, rel=1e-3)
    for index in np.ndindex(v.shape):
        nudge = np.zeros_like(v)
        nudge[index] = tiny
        by_weight = (loss(v + nudge, s) - loss(v - nudge, s)) / (2 * tiny)
        assert made.latent.grad[index].item() == pytest.approx(by_weight, abs=1e-5)


def test_values_by_hand_at_and_beyond_the_ends():
    """2 bits, Qn = 2, Qp = 1, s = 0.5. The ends themselves count as outside; ties go to even."""
    weight = torch.tensor([[-1.5, -1.0, -0.75, -0.375, 0.0, 0.125, 0.25, 0.375, 0.5, 9.0]])
    made = weight_quantizer(weight, 2).train()
    made.step.data.fill_(0.5)
    y = made()
    y.sum().backward()
    assert y.tolist() == [[-1, -1, -1, -0.5, 0, 0, 0, 0.5, 0.5, 0.5]]
    assert made.latent.grad.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 0, 0]]
    slopes = [-2, -2, -0.5, -0.25, 0, -0.25, -0.5, 0.25, 1, 1]
    assert made.step.grad.item() == pytest.approx(sum(slopes) / math.sqrt(10 * 1))


# The step


@every_width
def test_the_step_of_normal_weights_starts_in_closed_form(bits):
    shares = (torch.arange(20000).double() + 0.5) / 20000
    weight = torch.special.ndtri(shares).float()[torch.randperm(20000)].reshape(2, -1) * 0.1
    wanted = 2 * 0.1 * math.sqrt(2 / math.pi) / math.sqrt(2 ** (bits - 1) - 1)
    assert weight_quantizer(weight, bits).step.item() == pytest.approx(wanted, rel=1e-3)


def test_one_step_for_the_layer_or_one_for_each_channel():
    weight = torch.tensor([[1.0, -3.0], [40.0, 40.0]])
    start = 2 / math.sqrt(7)
    assert weight_quantizer(weight).step.tolist() == pytest.approx([21 * start])
    channels = weight_quantizer(weight, per_channel=True)
    assert channels.step.tolist() == pytest.approx([2 * start, 40 * start])
    assert channels.collapse(weight).scale.tolist() == pytest.approx([2 * start, 40 * start])


@both_kinds
def test_the_step_is_a_parameter_that_does_not_decay(per_channel):
    made = nn.Sequential(weight_quantizer(sample((3, 4)), per_channel=per_channel))
    made.append(activation_quantizer())
    decaying, others = parameter_groups(made, 0.1)
    assert decaying["params"] == [made[0].latent]
    assert {id(p) for p in others["params"]} == {id(made[0].step), id(made[1].step)}
    assert others["weight_decay"] == 0
    assert {"0.latent", "0.step", "1.step"} <= set(made.state_dict())


@given(st.floats(2.0**-60, 1e6, width=32))
def test_a_positive_parameter_is_the_step_with_its_gradient(value):
    parameter = torch.tensor(value, requires_grad=True)
    positive(parameter).backward()
    assert positive(parameter) == parameter
    assert parameter.grad == 1


@given(st.floats(-1e6, 1e6, width=32))
def test_the_step_is_positive_whatever_the_parameter(value):
    parameter = torch.tensor(value, requires_grad=True)
    positive(parameter).backward()
    assert positive(parameter) > 0
    assert parameter.grad == (-1 if value < 0 else 1)


def test_a_parameter_below_zero_mirrors_no_weight():
    made = weight_quantizer(sample((2, 30)))
    wanted = made.train()().detach()
    made.step.data.neg_()
    assert torch.equal(made(), wanted)
    assert torch.equal(made.eval()(), wanted)


@both_kinds
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-30])
def test_a_step_of_almost_nothing_gives_finite_gradients_and_a_scale(value, per_channel):
    made = weight_quantizer(sample((2, 30)), per_channel=per_channel).train()
    made.latent.data[0, 0] = 0
    made.step.data.fill_(value)
    made().sum().backward()
    assert torch.isfinite(made.step.grad).all()
    assert made.step.grad.any()
    assert torch.isfinite(made.latent.grad).all()
    assert (made.collapse(made.latent).scale > 0).all()


@both_kinds
def test_all_zero_weights_start_as_he_normal_ones(per_channel):
    weight = torch.zeros(2, 8, 3, 3)
    he = math.sqrt(2 / 72) * math.sqrt(2 / math.pi) * 2 / math.sqrt(7)
    made = weight_quantizer(weight, per_channel=per_channel)
    assert made.step.tolist() == pytest.approx([he] * len(made.step))
    weight[1] = 1
    steps = weight_quantizer(weight, per_channel=per_channel).step.tolist()
    assert steps == pytest.approx([he, 2 / math.sqrt(7)] if per_channel else [1 / math.sqrt(7)])


@every_width
@both_kinds
def test_what_trains_is_what_ships_bit_for_bit(bits, per_channel):
    made = weight_quantizer(sample((4, 3, 3, 3), bits), bits, per_channel=per_channel)
    assert torch.equal(made.train()(), made.eval()())
    assert made.grid.codes == tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


# Where the step of an activation comes from


@every_width
@both_signs
def test_training_computes_what_evaluation_computes_on_unsigned_codes(bits, nonnegative):
    x = sample((4, 3, 9), bits)
    made = activation_quantizer(bits, nonnegative)
    assert torch.equal(made.train()(x), made.eval()(x))
    scale, zero = made.qparams()
    qn, qp = limits(bits, nonnegative)
    assert scale == made.step
    assert zero == qn
    assert made.grid.codes == tuple(range(2**bits))
    assert made(torch.full((1, 1), 1e9)).item() == pytest.approx(qp * scale.item())
    assert made(torch.full((1, 1), -1e9)).item() == pytest.approx(-qn * scale.item())


@every_width
@both_signs
def test_the_first_batch_of_training_sets_the_step(bits, nonnegative):
    made = activation_quantizer(bits, nonnegative).train()
    x = sample((4, 3, 9)).abs()
    made(x)
    _, qp = limits(bits, nonnegative)
    start = 2 * x.mean().item() / math.sqrt(qp)
    assert made.step.item() == pytest.approx(start)
    made(100 * x)
    assert made.step.item() == pytest.approx(start)


def test_a_dead_tensor_can_come_to_life():
    made = activation_quantizer(2).train()
    assert not made(torch.zeros(2, 3)).any()
    assert made.step.item() == pytest.approx(2 / math.sqrt(3))
    x = torch.ones(2, 3, requires_grad=True)
    made(x).sum().backward()
    assert x.grad.any()


def calibrate(quantizer, *batches):
    """What qdeploy.calibrate does to an activation quantizer."""
    with quantizer.eval().calibration():
        for batch in batches:
            quantizer(batch)


def test_calibration_starts_an_untrained_step_from_the_mean_of_its_batches_and_forgets():
    made = activation_quantizer()
    calibrate(made, torch.full((2, 3), 100.0))
    calibrate(made, torch.full((2, 3), 1.0), torch.full((2, 3), 5.0))
    assert made.step.item() == pytest.approx(3 * 2 / math.sqrt(15))
    made.train()(torch.full((2, 3), 50.0))
    assert made.step.item() == pytest.approx(3 * 2 / math.sqrt(15))


def test_calibration_leaves_a_learned_step_alone():
    made = activation_quantizer().train()
    made(torch.ones(2, 3))
    made.step.data.fill_(0.123)
    calibrate(made, torch.full((2, 3), 100.0))
    assert made.step.item() == pytest.approx(0.123)


@pytest.mark.parametrize("before", ["nothing", "calibration"])
def test_without_data_there_is_no_step_but_an_error_that_says_what_to_do(before):
    made = activation_quantizer()
    if before == "calibration":
        calibrate(made, torch.ones(2, 3))
        made.reset()
    with pytest.raises(QdeployError, match=r"seen no data.*qdeploy\.calibrate"):
        made.eval().qparams()


def prepared_network(**options):
    return qdeploy.prepare(build("residual"), images(2), "lsq", 4, 4, **options)


def test_what_layers_read_is_learned_and_the_rest_is_measured():
    """The image, both branches of each Add and what an Add and a layer share are not learned."""
    made = dict(activations(prepared_network()).items())
    learned = {name for name, quantizer in made.items() if isinstance(quantizer, LsqActivation)}
    assert learned == {"stem_2", "relu", "relu_1_activation", "pool"}
    assert {made[name].grid.bits for name in learned} == {4}
    assert {made[name].zero for name in learned} == {0}
    measured = [made[name] for name in made.keys() - learned]
    assert {type(quantizer) for quantizer in measured} == {MovingRange}
    assert {quantizer.grid.bits for quantizer in measured} == {8}


def train(prepared, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        y = prepared.train()(images(16, seed=step))
        y.square().mean().backward()
        optimizer.step()


def optimizer_of(prepared):
    return torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_training_goes_on_where_the_state_dict_left_it(used):
    first = prepared_network()
    optimizer = optimizer_of(first)
    train(first, optimizer, range(2))
    states = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    train(first, optimizer, range(2, 4))

    second = prepared_network()
    optimizer = optimizer_of(second)
    if used:
        train(second, optimizer, range(7, 9))
    second.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    train(second, optimizer, range(2, 4))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_an_untrained_state_starts_anew_in_a_network_that_had_trained():
    fresh, used = prepared_network(), prepared_network()
    state = copy.deepcopy(fresh.state_dict())
    train(used, optimizer_of(used), range(7, 9))
    used.load_state_dict(state)
    for prepared in (fresh, used):
        train(prepared, optimizer_of(prepared), range(2))
    for name, value in fresh.state_dict().items():
        assert torch.equal(used.state_dict()[name], value), name


@pytest.mark.parametrize("loaded", [False, True])
def test_calibrating_a_trained_network_keeps_its_learned_steps(loaded):
    prepared = prepared_network()
    train(prepared, optimizer_of(prepared), range(3))
    if loaded:
        trained, prepared = prepared, prepared_network()
        prepared.load_state_dict(trained.state_dict())
    before = {name: p.clone() for name, p in prepared.named_parameters()}
    qdeploy.calibrate(prepared, [10 * images(16)])
    for name, parameter in prepared.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_training_reaches_each_step_and_keeps_it_positive():
    """At a learning rate that throws parameters across zero."""
    prepared = prepared_network()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1.0, momentum=0.9)
    before = {name: p.clone() for name, p in prepared.named_parameters()}
    train(prepared, optimizer, range(6))
    steps = {name: p for name, p in prepared.named_parameters() if name.endswith("step")}
    assert any((step < 0).any() for step in steps.values())
    for name, step in steps.items():
        assert not torch.equal(step, before[name])
        assert (positive(step) > 0).all()
    qdeploy.convert(prepared)


# What it can do, and the file


def test_what_it_can_do():
    assert LSQ.weight_bits == LSQ.act_bits == tuple(BITS)
    assert not LSQ.options().per_channel
    assert "Grid(-8..7)" in repr(weight_quantizer(torch.ones(1, 2)))
    assert "zero=8" in repr(activation_quantizer(4, nonnegative=False))
    with pytest.raises(QdeployError, match="no weight_bits = 1"):
        qdeploy.prepare(build("plain"), images(2), "lsq", 1)


def test_it_starts_from_a_copy_of_the_float_weight():
    weight = nn.Parameter(sample((2, 3)))
    made = weight_quantizer(weight)
    assert torch.equal(made.latent, weight)
    made.latent.data.zero_()
    assert weight.abs().sum() > 0


def bottleneck():
    """The second layer reads signed values, the third those of a ReLU."""
    torch.manual_seed(0)
    layers = {"a": conv(3, 6), "b": conv(6, 6, stride=2), "fc": nn.Linear(96, 5)}
    return Network(lambda self, x: self.fc(self.b(self.a(x)).relu().flatten(1)), **layers)


def test_the_file_predicts_what_evaluation_does(tmp_path):
    prepared = qdeploy.prepare(bottleneck(), images(2), "lsq", 4, 4)
    train(prepared, optimizer_of(prepared), range(3))
    assert [m.zero for m in prepared.modules() if isinstance(m, LsqActivation)] == [8, 0]
    file = exported(prepared.eval(), tmp_path)
    one_step = 1.5 / 2**4
    assert_the_file_predicts_what_evaluation_does(file, prepared, images(64), one_step)
    integer = {"QLinearConv": 2, "QGemm": 1, "QuantizeLinear": 1}
    assert {kind: file.operators[kind] for kind in integer} == integer
    assert not set(file.operators) & {"Conv", "Gemm", "MatMul", "DequantizeLinear"}
