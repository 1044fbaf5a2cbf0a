"""Bias correction: the mean output of every layer is float's again."""

import copy

import numpy as np
import pytest
import torch
from networks import Network, awkward_norms, build, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.methods.lsq import LsqWeight


def network_of(*modules):
    torch.manual_seed(0)
    return awkward_norms(nn.Sequential(*modules)).eval()


def plain():
    return network_of(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(64, 5),
    )


def normed(affine=True):
    return network_of(
        *(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=affine), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.ReLU(), nn.Flatten()),
        nn.Linear(64, 5),
    )


def without_bias():
    return network_of(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5, bias=True)
    )


NETWORKS = {
    "plain": plain,
    "normed": normed,
    "without affine": lambda: normed(affine=False),
    "without a bias": without_bias,
}


def batch(seed=1):
    return images(64, seed)


def outputs(network, names, x):
    """The mean output of each named module, by channel."""
    means = {}

    def keep(name):
        def hook(module, inputs, y):
            axes = [axis for axis in range(y.ndim) if axis != 1]
            means[name] = y.detach().numpy().mean(tuple(axes), dtype=np.float64)

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        network.eval()(x)
    for hook in hooks:
        hook.remove()
    return means


def calibrated(network, batches, weight_bits=3, **options):
    prepared = qdeploy.prepare(network, images(2), "simqat", weight_bits)
    qdeploy.calibrate(prepared, batches, "minmax", **options)
    return prepared


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layers_mean_output_is_floats(name):
    network = NETWORKS[name]()
    norms = [str(i) for i, m in enumerate(network) if isinstance(m, nn.BatchNorm2d)]
    layers = [str(i) for i, m in enumerate(network) if isinstance(m, nn.Conv2d | nn.Linear)]
    # In the prepared network a layer gives what its norm gave.
    ends = [str(int(i) + 1) if str(int(i) + 1) in norms else i for i in layers]
    expected = outputs(network, ends, batch())
    found = outputs(calibrated(network, [batch()], correct_bias=True), layers, batch())
    biased = outputs(calibrated(network, [batch()]), layers, batch())
    for layer, end in zip(layers, ends, strict=True):
        if network[int(layer)].bias is None and end == layer:
            continue
        np.testing.assert_allclose(found[layer], expected[end], atol=2e-5)
        assert np.abs(biased[layer] - expected[end]).max() > 1e-3


def test_batch_norm_is_re_estimated_and_corrected_at_once():
    network = normed()
    expected = outputs(network, ["7"], batch())["7"]
    prepared = calibrated(network, [batch()], correct_bias=True, batch_norm=True)
    found = outputs(prepared, ["7"], batch())["7"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_over_several_batches_it_is_nearly_floats():
    network, batches = plain(), [batch(seed) for seed in range(4)]
    everything = torch.cat(batches)
    expected = outputs(network, ["5"], everything)["5"]
    corrected = calibrated(network, iter(batches), correct_bias=True)
    found = np.abs(outputs(corrected, ["5"], everything)["5"] - expected).max()
    before = np.abs(outputs(calibrated(network, batches), ["5"], everything)["5"] - expected)
    assert found < 0.1 * before.max()


def test_what_ships_is_corrected():
    network = normed()
    integers = qdeploy.convert(calibrated(network, [batch()], correct_bias=True))
    with torch.no_grad():
        expected, found = network(batch()).mean(0), integers(batch()).mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_layer_that_is_called_twice_is_corrected_for_both():
    torch.manual_seed(0)
    prepared = calibrated(build("called_twice"), [batch()], correct_bias=True)
    assert prepared(batch()).isfinite().all()


def test_a_norm_that_two_layers_share_is_corrected_once():
    """Two copies of one layer need the same correction, and so does the norm behind both."""
    layer, norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
    torch.manual_seed(0)
    parts = {"a": layer, "b": copy.deepcopy(layer), "norm": norm}
    shared = Network(lambda self, x: self.norm(self.a(x)) + self.norm(self.b(x)), **parts)
    alone = nn.Sequential(layer, norm)
    found, expected = (
        calibrated(awkward_norms(network).eval(), [batch()], correct_bias=True)
        for network in (shared, alone)
    )
    ours, theirs = found.a.norm, expected.get_submodule("0").norm
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_gradients_are_as_before(training):
    prepared = calibrated(normed(), [batch()], 4).train()
    prepared(images()).sum().backward()
    prepared.train(training)
    gradients = [parameter.grad.clone() for parameter in prepared.parameters()]
    latents = {n: p.clone() for n, p in prepared.named_parameters() if n.endswith("latent")}
    qdeploy.calibrate(prepared, [batch()], "mse", correct_bias=True)
    assert {module.training for module in prepared.modules()} == {training}
    for parameter, gradient in zip(prepared.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert parameter.requires_grad
    for name, parameter in prepared.named_parameters():
        assert name not in latents or torch.equal(parameter, latents[name])


def test_a_method_without_float_weights_is_refused_before_anything_changes():
    prepared = qdeploy.prepare(plain(), images(2), "slb", 1)
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(QdeployError, match=r"correct_bias compares .* 0 trains another one"):
        qdeploy.calibrate(prepared, [batch()], correct_bias=True)
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name])


def test_any_method_that_rounds_a_float_weight_can_say_so(monkeypatch):
    network = normed()
    expected = outputs(network, ["7"], batch())["7"]
    prepared = qdeploy.prepare(network, images(2), "lsq", 3)
    with pytest.raises(QdeployError, match="LsqWeight"):
        qdeploy.calibrate(prepared, [batch()], correct_bias=True)
    weight = LsqWeight.scaled_latent
    monkeypatch.setattr(LsqWeight, "float_weight", lambda self, gain=None: weight(self, gain))
    qdeploy.calibrate(prepared, [batch()], batch_norm=False, correct_bias=True)
    np.testing.assert_allclose(outputs(prepared, ["7"], batch())["7"], expected, atol=2e-5)
