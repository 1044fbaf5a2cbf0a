"""prepare: what is kept of the float network, and which BatchNorm joins which layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Network, awkward_norms, build, conv, images
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.methods.simqat import SimQatOptions
from qdeploy.methods.slb import SlbOptions
from qdeploy.preparation.prepared import graph_module


def prepared_of(network, method="simqat", weight_bits=8, act_bits=8, layers=None, **options):
    return qdeploy.prepare(network, images(2), method, weight_bits, act_bits, layers, **options)


def joined(network):
    return {name for name, layer in prepared_of(network).quantized_layers() if layer.norm}


def same_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_users_network_is_left_untouched(name):
    network = build(name)
    network.eval()
    next(network.children()).train()
    modes = [module.training for module in network.modules()]
    types = [type(module) for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    prepared = prepared_of(network, "slb", 1)
    with torch.no_grad():
        for tensor in (*prepared.parameters(), *prepared.buffers()):
            tensor.zero_()
    assert same_states(network.state_dict(), before)
    assert [module.training for module in network.modules()] == modes
    assert [type(module) for module in network.modules()] == types


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training):
    prepared = prepared_of(build("residual").train(training))
    assert {module.training for module in prepared.modules()} == {training}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_whole_is_loaded_as_it_was(name, tmp_path):
    prepared = prepared_of(build(name), "lsq", 4, 4).eval()
    qdeploy.calibrate(prepared, [images()])
    converted = qdeploy.convert(prepared)
    torch.save([prepared, converted], tmp_path / "networks.pt")
    loaded, loaded_converted = torch.load(tmp_path / "networks.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(images()), prepared(images()))
        for network in (loaded_converted, qdeploy.convert(loaded)):
            assert torch.equal(network(images()), converted(images()))


@pytest.mark.parametrize("name", NETWORKS)
def test_at_eight_bits_and_float_activations_it_computes_what_it_computed(name):
    network = build(name).eval()
    prepared = prepared_of(network, act_bits="float")
    with torch.no_grad():
        expected, found = network(images()), prepared(images())
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_trained_weights_biases_and_statistics_are_kept_exactly():
    network = build("residual")
    layers = dict(prepared_of(network).quantized_layers())
    assert torch.equal(layers["conv1"].quantizer.latent, network.conv1.weight)
    assert torch.equal(layers["conv1"].bias, network.conv1.bias)
    assert torch.equal(layers["fc"].quantizer.latent, network.fc.weight)
    assert layers["conv2"].bias is None
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(layers["conv1"].norm, name), getattr(network.bn1, name))


def test_a_norm_alone_behind_its_layer_is_joined():
    assert joined(build("residual")) == {"stem.0", "conv1", "conv2", "same.0"}
    assert joined(build("vector")) == {"1"}
    assert joined(build("signal")) == {"conv"}


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda self, x: self.norm(y := self.conv(x)) + y, {}),
        (lambda self, x: self.norm(self.conv(x)) + self.conv(x), {}),
        (lambda self, x: self.norm(F.relu(self.conv(x))), {}),
        (
            lambda self, x: self.bare(self.conv(x)),
            {"bare": nn.BatchNorm2d(6, track_running_stats=False)},
        ),
    ],
    ids=["two readers", "layer called twice", "relu between", "no statistics"],
)
def test_other_norms_stay_where_they_are(function, parts):
    network = Network(function, conv=conv(), norm=nn.BatchNorm2d(6), **parts)
    assert joined(network) == set()
    calls = graph_module(prepared_of(network)).graph.find_nodes(op="call_module")
    assert len({node.target for node in calls} & {"norm", "bare"}) == 1


@pytest.mark.parametrize("method", ["simqat", "int8_training"])
def test_a_norm_joins_every_layer_that_it_alone_reads(method):
    """Of three layers, of one that is called twice, and beside a place where it stays."""

    def forward(self, x):
        y = self.norm(self.a(x)) + self.norm(self.b(x)) + self.norm(self.b(x.flip(2)))
        return self.head(self.norm(F.relu(y)))

    network = awkward_norms(
        Network(forward, a=conv(), b=conv(), norm=nn.BatchNorm2d(6), head=conv(6, 2))
    )
    prepared = prepared_of(network, method)
    layers = dict(prepared.quantized_layers())
    assert layers["a"].norm is layers["b"].norm is prepared.norm
    assert layers["head"].norm is None
    for given in (prepared, network):
        given.train()(images())
    assert prepared.norm.num_batches_tracked == network.norm.num_batches_tracked == 4
    qdeploy.calibrate(prepared, [images()])
    with torch.no_grad():
        expected, found = prepared.eval()(images()), qdeploy.convert(prepared)(images())
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_norm_over_another_axis_than_the_linear_outputs_stays():
    network = Network(
        lambda self, x: self.norm(self.fc(x.flatten(2))), fc=nn.Linear(64, 3), norm=nn.BatchNorm1d(3)
    ).eval()  # fmt: skip
    network.norm.weight.data = torch.tensor([1.0, -2.0, 3.0])
    assert joined(network) == set()
    prepared = prepared_of(network, act_bits="float")
    torch.testing.assert_close(prepared(images()), network(images()), atol=0.05, rtol=0)


def test_a_norm_without_gain_and_shift_is_joined():
    network = nn.Sequential(conv(), nn.BatchNorm2d(6, affine=False))
    assert joined(network) == {"0"}


def test_a_layer_called_twice_is_one_layer_with_one_weight():
    prepared = prepared_of(build("called_twice"))
    names = [name for name, _ in prepared.quantized_layers()]
    assert names == ["stem.0", "shared", "fc"]
    latents = [m for m in prepared.modules() if isinstance(m, QuantizedLayer)]
    assert len(latents) == 3


def test_a_layer_under_two_names_is_one_layer():
    network = Network(lambda self, x: self.b(F.relu(self.a(x))), a=conv(3, 3))
    network.b = network.a
    assert [name for name, _ in prepared_of(network).quantized_layers()] == ["a"]


def test_gradients_reach_every_parameter():
    prepared = prepared_of(build("residual"))
    prepared(images()).square().sum().backward()
    missing = [name for name, p in prepared.named_parameters() if p.grad is None]
    assert missing == []


TRANSPOSED = {
    "squares": nn.ConvTranspose2d(3, 6, 2, stride=2),
    "overlapping": nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "groups": nn.ConvTranspose2d(3, 6, 4, stride=3, groups=3, dilation=2, bias=False),
}


@pytest.mark.parametrize("layer", TRANSPOSED.values(), ids=TRANSPOSED)
def test_a_transposed_convolution_is_rounded_for_each_output_channel(layer):
    prepared = qdeploy.prepare(nn.Sequential(layer), images(2), "simqat", 8, "float").eval()
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        weight = layer.weight.unflatten(0, (layer.groups, -1))  # [groups, in / g, out / g, h, w]
        step = weight.abs().amax((1, 3, 4), keepdim=True) * 2 / 255
        rounded = (torch.round(weight / step).clamp(-128, 127) * step).flatten(0, 1)
        expected.weight.copy_(rounded)
        torch.testing.assert_close(prepared(images()), expected(images()), atol=1e-5, rtol=1e-5)


def test_a_network_without_layers_is_refused():
    with pytest.raises(QdeployError, match="Sequential has no layer to quantize"):
        prepared_of(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("method", "bits", "options", "given"),
    [
        ("simqat", 5, SimQatOptions, {"fold": "two-conv", "freeze_bn": 17, "ema_decay": 0.75}),
        ("slb", 2, SlbOptions, {"t_factor": 1.7, "linear": True, "quant_delay": 23}),
    ],
)
def test_printing_shows_every_setting(method, bits, options, given):
    text = str(prepared_of(build("residual"), method, bits, layers={"fc": "float"}, **given))
    settings = options(**given).model_dump()
    line = next(line for line in text.splitlines() if line.strip().startswith("conv1: "))
    assert f"{method} w{bits}a8" in line
    for name, value in settings.items():
        assert f"{name}={value!r}" in line
    assert "fc: float" in text


def test_printing_shows_what_each_module_really_does():
    text = str(prepared_of(build("residual"), "simqat", 3, 4, fold="one-conv", freeze_bn=17))
    assert "fold=one-conv, freeze_bn=17" in text
    assert "groups=7" in text
    assert "bits=3, symmetric=True, per_channel=True, grid=Grid(-4..3)" in text
    assert "bits=4, symmetric=False, grid=Grid(0..15), decay=0.999, quant_delay=0" in text


def test_a_prepared_network_is_not_prepared_again():
    with pytest.raises(QdeployError, match="prepared already; give prepare the float network"):
        qdeploy.prepare(prepared_of(build("residual"), "simqat", 4), images(2), "simqat")


def test_printing_names_the_products_that_stay_float():
    network = Network(
        lambda self, x: F.conv2d(self.up(self.conv(x)), 2 * self.kernel),
        conv=conv(),
        up=NonDynamicallyQuantizableLinear(8, 8),
        kernel=nn.Parameter(torch.ones(2, 6, 1, 1)),
    )
    text = str(prepared_of(network, "simqat", 4))
    assert "conv: simqat w4a8" in text
    assert "up: float" in text
    assert "conv2d (functional): float" in text


def test_progress_reaches_every_layer():
    prepared = prepared_of(build("residual"), "slb", 1, t_start_time=0.5, t_end_time=0.8)
    prepared.set_progress(0, 10)
    assert prepared.searching
    prepared.set_progress(9, 10)
    assert not prepared.searching


def test_arguments_that_are_not_given_keep_their_defaults():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, mask=None, scale: float = 2.0):
            x = x if mask is None else x * mask
            return self.fc(x) * scale

    network, x = Masked().eval(), torch.randn(8, 4)
    prepared = qdeploy.prepare(network, x, "simqat")
    qdeploy.calibrate(prepared, [x])
    assert list(prepared.plan.evaluation.arguments) == ["x"]
    with torch.no_grad():
        torch.testing.assert_close(prepared.eval()(x), network(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_are_refused(kind):
    with pytest.raises(QdeployError, match=rf"0.weight is {kind}; .* network\.float\(\)"):
        qdeploy.prepare(nn.Sequential(nn.Linear(4, 3)).to(kind), torch.randn(2, 4), "simqat")


def test_hooks_that_would_be_lost_are_refused():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    handle = network[1].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(QdeployError, match="1 has forward hooks"):
        qdeploy.prepare(network, torch.randn(2, 4), "simqat")
    handle.remove()
    qdeploy.prepare(network, torch.randn(2, 4), "simqat")


def test_an_infinite_constant_does_not_fold_into_a_bias():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)
            self.register_buffer("mask", torch.zeros(8).index_fill(0, torch.tensor(3), -torch.inf))

        def forward(self, x):
            return (self.fc(x) + self.mask).softmax(-1)

    prepared = qdeploy.prepare(Masked().eval(), torch.randn(4, 6), "simqat")
    (layer,) = [layer for _, layer in prepared.quantized_layers()]
    _, bias = layer.integers()
    assert bias.isfinite().all()


def test_no_random_number_of_the_users_is_drawn():
    """Tracing runs what forward draws in training, and writes out attention, which torch initialises."""

    def forward(self, x):
        y = self.attention(x, x, x)[0]
        return y * (torch.rand(x.shape[0], 1, 1) < 0.5) if self.training else y

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    network, x = Network(forward, attention=attention).train(), torch.rand(2, 3, 8)
    before = torch.get_rng_state()
    qdeploy.prepare(network, x, "simqat")
    assert torch.equal(torch.get_rng_state(), before)
