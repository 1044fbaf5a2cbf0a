"""convert: the integers that are kept compute what the training network computes."""

import copy

import numpy as np
import pytest
import torch
from exported_networks import SETTINGS, calibrated, outputs
from networks import DEAD_SHIFT, NETWORKS, Network, awkward_norms, build, conv, images
from torch import fx, nn
from torch.nn import functional as F

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.integer import IntegerActivation, IntegerLayer
from qdeploy.preparation.prepared import graph_module


class Recorded(fx.Interpreter):
    """Keeps every value of a run."""

    def __init__(self, network):
        super().__init__(network)
        self.values = {}

    def run_node(self, n):
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


class StepByStep(fx.Interpreter):
    """Runs an integer network; each quantized tensor is compared with the training network's and
    then replaced by it, so that one layer's difference is not another's."""

    def __init__(self, network, expected):
        super().__init__(network)
        self.expected = expected
        self.modules_by_name = dict(network.named_modules())
        self.steps = {}

    def run_node(self, n):
        value = super().run_node(n)
        module = self.modules_by_name.get(n.target) if n.op == "call_module" else None
        if not isinstance(module, IntegerActivation) or n.name not in self.expected:
            return value
        wanted = self.expected[n.name]
        self.steps[n.name] = torch.round((value - wanted) / module.scale).abs()
        return wanted


def at_8_bits(prepared):
    return all(chosen is None or chosen.act_bits == 8 for chosen in prepared.settings.values())


def same_within_one_step(prepared, x):
    with torch.no_grad():
        recorded = Recorded(graph_module(prepared))
        expected = recorded.run(x)
        stepwise = StepByStep(qdeploy.convert(prepared), recorded.values)
        found = stepwise.run(x)
    assert len(stepwise.steps) > 1
    for name, steps in stepwise.steps.items():
        assert steps.max() <= 1, name
        # A bias counts in steps of what the layer reads, coarse where that has few bits.
        assert (steps > 0).float().mean() < (0.03 if at_8_bits(prepared) else 0.08), name
    bound = 0.005 * expected.abs().max().item()  # the rounded bias, where nothing rounds behind it
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_quantized_tensor_is_within_one_step_of_training(name, settings):
    same_within_one_step(calibrated(build(name), settings), images())


@pytest.mark.parametrize("fold", ["none", "one-conv", "two-conv"])
def test_every_way_of_folding_ships_the_same_network(fold):
    prepared = qdeploy.prepare(build("residual"), images(2), "simqat", 8, 8, fold=fold)
    qdeploy.calibrate(prepared, [images(32)])
    same_within_one_step(prepared.eval(), images())


def test_after_training_steps_too():
    prepared = qdeploy.prepare(build("residual"), images(2), "slb", 1, quant_delay=0).train()
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05, 0.9)
    for epoch in range(5):
        prepared.set_progress(epoch, 5)
        optimizer.zero_grad()
        prepared(images(32, epoch)).square().mean().backward()
        optimizer.step()
    qdeploy.calibrate(prepared, [images(32)])
    same_within_one_step(prepared.eval(), images())


def integer_layers(network):
    return {n: m for n, m in network.named_modules() if isinstance(m, IntegerLayer)}


@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_are_the_folded_weights_of_evaluation(settings):
    prepared = calibrated(build("residual"), settings)
    layers = dict(prepared.quantized_layers())
    for name, layer in integer_layers(qdeploy.convert(prepared)).items():
        codes, zero = layer.codes.double(), layer.zero.double()
        scale = layer.scale.double()
        column = (-1, *[1] * (codes.ndim - 1))
        found = (codes - zero.reshape(column)) * scale.reshape(column)
        trained, norm = layers[name], layers[name].norm
        gain = (
            torch.ones(len(codes))
            if norm is None
            else norm.weight / (norm.running_var + norm.eps).sqrt()
        )
        folded = prepared_fold(trained, gain)
        live = gain != 0
        torch.testing.assert_close(found[live].float(), folded[live], rtol=1e-5, atol=1e-7)
        assert codes.abs().max() <= 128


def prepared_fold(trained, gain):
    with torch.no_grad():
        column = gain.reshape(-1, *[1] * (trained.quantizer.latent.ndim - 1))
        if trained.fold == "none":
            shape = trained.quantizer()
            return shape * gain.reshape(-1, *[1] * (shape.ndim - 1))
        assert column.ndim == trained.quantizer.latent.ndim
        return trained.quantizer(gain)


def test_the_bias_counts_steps_of_input_scale_times_weight_scale():
    prepared = calibrated(build("residual"), "slb w1a8")
    converted = qdeploy.convert(prepared)
    image_scale = converted.get_submodule("activations.x").scale
    stem = converted.get_submodule("stem.0")
    assert stem.bias.dtype == torch.int32
    assert torch.equal(stem.bias_scale, image_scale * stem.scale)
    norm = prepared.stem.get_submodule("0").norm
    wanted = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    error = (stem.bias.double() * stem.bias_scale.double() - wanted).abs()
    assert (error <= 0.51 * stem.bias_scale).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_dead_channel_gives_its_shift_and_its_bias_fits(settings):
    prepared = calibrated(build("residual"), settings)
    layer = qdeploy.convert(prepared).get_submodule("stem.0")
    assert layer.bias.abs().max() <= 2**30
    layer.out = None  # what it gives before it is rounded
    x = 3 * images()
    with torch.no_grad():
        dead = layer(qdeploy.convert(prepared).get_submodule("activations.x")(x))[:, 1]
    torch.testing.assert_close(dead, torch.full_like(dead, DEAD_SHIFT), atol=1e-4, rtol=0)


def test_a_dead_channel_on_a_grid_with_zero_keeps_nothing_of_its_weight():
    prepared = calibrated(build("residual"), "simqat w3a4")
    layer = qdeploy.convert(prepared).get_submodule("stem.0")
    assert (layer.codes[1] == layer.zero[1]).all()


def test_a_layer_called_twice_has_one_weight_and_a_bias_for_each_input():
    converted = qdeploy.convert(calibrated(build("called_twice")))
    layers = integer_layers(converted)
    assert set(layers) == {"stem.0", "shared", "shared_2", "fc"}
    assert torch.equal(layers["shared"].codes, layers["shared_2"].codes)
    assert not torch.equal(layers["shared"].bias_scale, layers["shared_2"].bias_scale)


def test_a_second_call_does_not_take_the_name_of_another_layer():
    network = Network(
        lambda self, x: self.shared(self.shared_2(self.shared(x).relu()).relu()),
        shared=conv(3, 3), shared_2=conv(3, 3),
    )  # fmt: skip
    prepared = calibrated(network)
    assert len(integer_layers(qdeploy.convert(prepared))) == 3
    same_within_one_step(prepared, images())


def test_convert_changes_nothing_in_the_training_network():
    prepared = calibrated(build("residual"), "slb w1a8").train()
    before = copy.deepcopy(prepared.state_dict())
    qdeploy.convert(prepared)
    assert prepared.training
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_an_integer_network_knows_no_method_and_has_no_parameters():
    converted = qdeploy.convert(calibrated(build("residual"), "slb w1a8"))
    assert list(converted.parameters()) == []
    assert "slb" not in str(converted).lower()
    assert not converted.training


def test_convert_needs_ranges():
    prepared = qdeploy.prepare(build("residual"), images(2), "simqat")
    with pytest.raises(QdeployError, match=r"seen no data.*qdeploy\.calibrate"):
        qdeploy.convert(prepared)


def test_convert_takes_what_prepare_gave():
    with pytest.raises(QdeployError, match=r"what qdeploy\.prepare returned, not Residual"):
        qdeploy.convert(build("residual"))


def test_dropouts_are_gone():
    network = nn.Sequential(nn.Dropout2d(0.5), conv(), nn.ReLU(), nn.Dropout(), nn.Flatten())
    prepared = calibrated(network)
    converted = qdeploy.convert(prepared)
    kinds = {
        type(converted.get_submodule(n.target))
        for n in converted.graph.nodes
        if n.op == "call_module"
    }
    assert not kinds & {nn.Dropout, nn.Dropout2d}
    np.testing.assert_allclose(outputs(converted, images()), outputs(prepared, images()), atol=1e-2)


def test_an_activation_that_is_always_zero_is_no_trouble():
    network = nn.Sequential(
        conv(), nn.ReLU(), conv(6, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    network[0].bias.data.fill_(-100)
    prepared = calibrated(network)
    found = outputs(qdeploy.convert(prepared), images())
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, outputs(prepared, images()), atol=1e-3)


class Doubled(nn.Identity):
    """Does more than the module of torch that it is made of."""

    def forward(self, x):
        return 2 * x


def test_what_only_inherits_from_a_module_that_evaluation_skips_stays():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(), nn.Conv2d(4, 5, 3), nn.Flatten())
    prepared = qdeploy.prepare(network, images(2), "simqat", leaves=["1"]).eval()
    qdeploy.calibrate(prepared, [images()])
    with torch.no_grad():
        found, expected = qdeploy.convert(prepared)(images()), prepared(images())
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_of_its_own_batch_stays_one(affine):
    norm = nn.BatchNorm2d(6, affine=affine, track_running_stats=False)
    network = nn.Sequential(conv(), norm, nn.ReLU(), conv(6, 4)).eval()
    prepared, x = qdeploy.prepare(network, images(2), "simqat"), images()
    qdeploy.calibrate(prepared, [x])
    expected = network(x)
    for model in (prepared.eval(), qdeploy.convert(prepared)):
        assert (model(x) - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_norm_at_two_places_reads_the_step_of_each():
    """Between integers it is a convolution, whose bias counts in steps of what it reads."""

    def forward(self, x):
        small, large = F.max_pool2d(F.relu(self.a(x)), 2), F.max_pool2d(F.relu(20 * self.b(x)), 2)
        return self.head(F.relu(self.norm(small)) + F.relu(self.norm(large)))

    parts = {"a": conv(), "b": conv(), "head": conv(6, 2)}
    network = awkward_norms(Network(forward, norm=nn.BatchNorm2d(6), **parts)).eval()
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images()])
    converted = qdeploy.convert(prepared)
    sources = [converted.get_submodule(name).source for name in ("norm", "norm_2")]
    assert sources[1].scale > 5 * sources[0].scale


def test_a_sum_with_a_factor_is_no_plain_sum():
    network = Network(
        lambda self, x: self.last(torch.add(self.a(x), self.b(x), alpha=-0.5)),
        a=conv(), b=conv(), last=conv(6, 4),
    ).eval()  # fmt: skip
    prepared, x = qdeploy.prepare(network, images(2), "simqat"), images()
    qdeploy.calibrate(prepared, [x])
    assert torch.allclose(qdeploy.convert(prepared)(x), prepared.eval()(x), atol=0.05)


def test_equal_calls_are_one_as_in_the_file(tmp_path):
    """There a layer that two quantizers read is computed in float, also if forward calls it twice."""
    torch.manual_seed(0)
    network = Network(
        lambda self, x: self.last(F.relu(self.a(x)) * self.b(F.relu(self.a(x))) - self.a(x)),
        a=conv(), b=conv(6, 6), last=conv(6, 4),
    ).eval()  # fmt: skip
    prepared = qdeploy.prepare(network, images(2), "simqat").eval()
    qdeploy.calibrate(prepared, [images(16)])
    file = qdeploy.export(prepared, tmp_path / "model.onnx", images(2))
    exactness = qdeploy.validate(prepared, file, [images(64)]).exactness
    by_name = {tensor.name: tensor for tensor in exactness.tensors}
    assert not by_name["a"].integer
    assert not by_name["a, relu"].integer
    assert exactness.differing == 0
