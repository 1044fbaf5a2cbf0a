"""calibrate, against statistics computed in numpy for the weights that ship."""

import copy
import inspect

import numpy as np
import pytest
import torch
from networks import Network, build, conv, images
from quantizers import activations
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.recipe import CalibrateSection


def batches_of(sizes=(8, 16, 8)):
    return [images(size, seed) * (1 + seed) for seed, size in enumerate(sizes)]


def pointwise(**options):
    """Conv 1x1, BatchNorm, ReLU at 1 bit, so that numpy can say what the layer computes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    return qdeploy.prepare(network, images(2), "slb", 1, **options)


def test_a_search_inside_of_another_module_gets_the_norms_of_the_hard_weights_too():
    alone = pointwise(act_bits="float")
    wrapped = nn.Sequential(copy.deepcopy(alone), nn.Softmax(1))
    qdeploy.calibrate(alone, batches_of())
    qdeploy.calibrate(wrapped, batches_of())
    norms = (network.get_submodule("0").norm for network in (alone, wrapped[0]))
    expected, found = (norm.running_var for norm in norms)
    assert torch.equal(found, expected)
    assert not torch.equal(found, torch.ones(5))  # what an untouched norm has


def test_norms_stay_as_they_were_trained_both_here_and_in_recipes():
    """Re-estimated from a few images they cost a trained network accuracy."""
    default = inspect.signature(qdeploy.calibrate).parameters["batch_norm"].default
    assert default == CalibrateSection().batch_norm is False


def test_norms_average_the_batches_for_the_hard_weights():
    prepared = pointwise(act_bits="float")
    layer = prepared.get_submodule("0")
    hard = np.where(layer.quantizer.latent.detach().numpy() >= 0, 1.0, -1.0)[:, :, 0, 0]
    bias = layer.bias.detach().numpy()[:, None]
    means, variances = [], []
    for batch in batches_of():
        pixels = batch.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
        y = hard @ pixels + bias
        means.append(y.mean(1))
        variances.append(y.var(1, ddof=1))
    qdeploy.calibrate(prepared.train(), batches_of())
    np.testing.assert_allclose(layer.norm.running_mean, np.mean(means, 0), atol=1e-5)
    np.testing.assert_allclose(layer.norm.running_var, np.mean(variances, 0), rtol=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_only_a_search_has_its_norms_re_estimated_unless_that_is_asked_for(batch_norm):
    committed = pointwise(act_bits="float").train()
    committed.set_progress(9, 10)
    torch.manual_seed(1)
    weights = qdeploy.prepare(build("residual"), images(2), "simqat")
    for prepared in (committed, weights):
        norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.running_mean.uniform_()
        before = [norm.running_mean.clone() for norm in norms]
        qdeploy.calibrate(prepared, batches_of(), batch_norm=batch_norm)
        for norm, mean in zip(norms, before, strict=True):
            assert torch.equal(norm.running_mean, mean) != batch_norm


def test_ranges_average_the_batches():
    prepared = pointwise()
    qdeploy.calibrate(prepared, batches_of())
    quantizer = next(iter(activations(prepared).values()))
    lows, highs = zip(*((b.min().item(), b.max().item()) for b in batches_of()), strict=True)
    assert quantizer.minimum.item() == pytest.approx(np.mean(lows), rel=1e-6)
    assert quantizer.maximum.item() == pytest.approx(np.mean(highs), rel=1e-6)
    assert int(quantizer.batches) == 3


@pytest.mark.parametrize("training", [False, True])
def test_branches_that_a_concat_joins_have_the_range_of_the_wider_one(training):
    """An average of both would cut off the half of the wider."""
    network = Network(
        lambda self, x: self.last(torch.cat([self.wide(x).relu(), self.narrow(x).relu()], 1)),
        wide=conv(), narrow=conv(), last=conv(12),
    )  # fmt: skip
    with torch.no_grad():
        network.narrow.weight.mul_(0.01)
    prepared = qdeploy.prepare(network, images(2), "simqat")
    batches = [images(4, seed) for seed in range(3)]
    if training:
        prepared.train()
        for batch in batches:
            prepared(batch)
    else:
        qdeploy.calibrate(prepared, batches)
    ranges = [m for m in prepared.modules() if getattr(m, "places", 1) == 2]
    assert len(ranges) == 1
    with torch.no_grad():
        highest = torch.stack([network.wide(batch).relu().max() for batch in batches]).mean()
    assert ranges[0].maximum.item() == pytest.approx(highest.item(), rel=0.03)  # its layer rounds


def test_what_was_seen_before_is_forgotten():
    first, second = pointwise(), pointwise()
    qdeploy.calibrate(first, batches_of())
    qdeploy.calibrate(second, [100 + image for image in batches_of()])
    qdeploy.calibrate(second, batches_of())
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, msg=name)


def test_batches_may_carry_labels_and_come_from_a_generator():
    plain, labelled = pointwise(), pointwise()
    qdeploy.calibrate(plain, batches_of())
    qdeploy.calibrate(labelled, ((batch, torch.zeros(len(batch))) for batch in batches_of()))
    for name, value in plain.state_dict().items():
        assert torch.equal(labelled.state_dict()[name], value)


@pytest.mark.parametrize("options", [{}, {"fold": "two-conv"}, {"fold": "one-conv"}])
def test_parameters_modes_and_momenta_are_as_before(options):
    prepared = qdeploy.prepare(build("residual"), images(2), "simqat", 8, 8, **options).train()
    norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[0].eval()
    norms[1].momentum = 0.3
    norms[2].momentum = None
    modes = {name: module.training for name, module in prepared.named_modules()}
    momenta = [norm.momentum for norm in norms]
    parameters = copy.deepcopy(dict(prepared.named_parameters()))
    qdeploy.calibrate(prepared, batches_of(), batch_norm=True)
    assert {name: module.training for name, module in prepared.named_modules()} == modes
    assert [norm.momentum for norm in norms] == momenta
    for name, parameter in prepared.named_parameters():
        assert torch.equal(parameter, parameters[name])
        assert parameter.grad is None


def test_the_mode_comes_back_when_a_batch_is_wrong():
    prepared = pointwise().train()
    with pytest.raises(QdeployError, match="7 channels"):
        qdeploy.calibrate(prepared, [images(2), torch.zeros(2, 7, 8, 8)])
    assert all(module.training for module in prepared.modules())
    norm = prepared.get_submodule("0").norm
    assert norm.momentum == 0.1
    assert not any(getattr(m, "calibrating", False) for m in prepared.modules())


def test_one_tensor_is_no_batches():
    with pytest.raises(QdeployError, match=r"takes batches, not one tensor: give it a list, \[x\]"):
        qdeploy.calibrate(pointwise(), images(2))


@pytest.mark.parametrize("nothing", [[], iter([])])
def test_without_batches_nothing_is_forgotten(nothing):
    prepared = pointwise()
    qdeploy.calibrate(prepared, batches_of())
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(QdeployError, match="no batches; give it at least one"):
        qdeploy.calibrate(prepared, nothing)
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_evaluation_touches_no_statistics():
    prepared = pointwise().eval()
    qdeploy.calibrate(prepared, batches_of())
    before = copy.deepcopy(prepared.state_dict())
    with torch.no_grad():
        prepared(100 * images())
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


@pytest.mark.parametrize("ranges", ["mean", "minmax", "mse"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_without_bounds_are_refused(ranges, bad):
    prepared, x = qdeploy.prepare(build("plain"), images(2), "simqat"), images(8)
    x[0, 0, 0, 0] = bad
    with pytest.raises(QdeployError, match="look for nan and inf"):
        qdeploy.calibrate(prepared, [x], ranges)


BATCHES = {
    "channels": (torch.zeros(4, 5, 8, 8), r"torch\.float32 \[4, 5, 8, 8\]"),
    "rank": (np.zeros((4, 3, 8), np.float32), r"torch\.float32 \[4, 3, 8\]"),
}


@pytest.mark.parametrize(("batch", "named"), BATCHES.values(), ids=BATCHES)
def test_a_batch_that_the_network_does_not_take_is_named(batch, named):
    prepared = qdeploy.prepare(build("plain"), images(2), "simqat")
    with pytest.raises(QdeployError, match=f"does not take a calibration batch of {named}"):
        qdeploy.calibrate(prepared, [batch])
