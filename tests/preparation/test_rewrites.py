"""Rewrites keep what a network computes, and modules kept whole stay as they are."""

import itertools
import re
import warnings
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from exported_networks import run
from families import FAMILIES, Conv2dSame, FrozenBatchNorm2d, StochasticDepth, build, inputs
from networks import Network, conv, images
from quantizers import activations
from torch import nn
from torch.utils import _pytree as pytree

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import GateRange
from qdeploy.layers.norm import ChannelAffine
from qdeploy.layers.transparent import transparent
from qdeploy.preparation.attention import OpenAttention
from qdeploy.preparation.opening import with_open_modules
from qdeploy.preparation.prepare import rewritten
from qdeploy.preparation.trace import trace
from qdeploy.preparation.tracer import TrainingOnly


def prepared_float(network, x, **options):
    """Prepared with float activations and 8-bit weights, to be `close` to the float network."""
    return qdeploy.prepare(network, x, "simqat", 8, "float", **options)


def close(found, expected):
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_anew_computes_the_same(name):
    network, x = build(name).eval(), inputs(name, 3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        written = rewritten(trace(with_open_modules(network), x), x).eval()
        for other in (x, inputs(name, 5, seed=2)):
            found, expected = (pytree.tree_leaves(model(*other)) for model in (written, network))
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 5, "vdim": 7}], ids=["self", "cross"])
def test_attention_written_out_is_that_of_torch(batch_first, widths):
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 2, batch_first=batch_first, **widths).eval()
    nn.init.normal_(whole.in_proj_bias)
    query = torch.randn(3, 3, 8)
    key, value = torch.randn(3, 3, widths.get("kdim", 8)), torch.randn(3, 3, widths.get("vdim", 8))
    future = torch.ones(3, 3).triu(1).bool()
    padding = torch.tensor([[False, False, True]]).repeat(3, 1)
    for options in (
        {},
        {"attn_mask": future},
        {"attn_mask": torch.randn(3, 3)},
        {"attn_mask": torch.randn(6, 3, 3)},
        {"key_padding_mask": padding},
        {"key_padding_mask": padding, "attn_mask": torch.eye(3).bool()},
        {"key_padding_mask": padding * -2.0, "attn_mask": torch.randn(6, 3, 3)},
    ):
        found, _ = OpenAttention(whole).eval()(query, key, value, **options)
        expected, _ = whole(query, key, value, **options)
        torch.testing.assert_close(found, expected)
    _, found = OpenAttention(whole).eval()(query, key, value)
    torch.testing.assert_close(found, whole(query, key, value)[1])


def test_a_frozen_batch_norm_folds_and_calibration_leaves_it():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(6)
    for values in (norm.weight, norm.bias, norm.running_mean):
        values.normal_()
    network = Network(
        lambda self, x: self.fc(F.relu(self.norm(self.conv(x))).flatten(1)),
        conv=conv(), norm=norm, fc=nn.Linear(384, 5),
    ).eval()  # fmt: skip
    prepared = prepared_float(network, images(2))
    (_, layer), _ = prepared.quantized_layers()
    assert isinstance(layer.norm, ChannelAffine)
    assert list(layer.norm.parameters()) == []
    qdeploy.calibrate(prepared, [images(8)], batch_norm=True)
    for model in (prepared, qdeploy.convert(prepared)):
        close(model.train()(images()), network(images()))


def test_the_scale_of_a_layer_folds_and_still_trains():
    network = Network(
        lambda self, x: self.fc((x.permute(0, 2, 3, 1) @ torch.eye(3)).flatten(1))
        + self.gamma * self.fc(x.flatten(1)),
        fc=nn.Linear(192, 5), gamma=nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])),
    )  # fmt: skip
    twice = prepared_float(network, images(2))
    assert not [m for m in twice.modules() if isinstance(m, ChannelAffine)]  # fc is called twice
    single = Network(
        lambda self, x: self.gamma * self.fc(x), fc=nn.Linear(8, 5), gamma=network.gamma
    )
    prepared = prepared_float(single, images(2))
    ((_, layer),) = prepared.quantized_layers()
    prepared(images()).sum().backward()
    assert isinstance(layer.norm, ChannelAffine)
    assert prepared.gamma.grad.abs().min() > 0
    for model in (prepared.eval(), qdeploy.convert(prepared)):
        close(model(images()), single(images()))


class Gated(nn.Module):
    """EfficientDet's: an activation of weights that are learned, divided by their sum."""

    def __init__(self):
        super().__init__()
        self.weights, self.relu = nn.Parameter(torch.tensor([0.4, 1.5])), nn.ReLU()

    def forward(self, x, y):
        weights = self.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        return weights[0] * x + weights[1] * y


def residual(self, x):
    y = self.conv(x)
    return y + self.alpha * self.same(F.relu(y))


def normalised_by_hand(self, x):
    inverse = (self.gain**2 + 1e-5).sqrt()[None, :, None, None]
    return 1 - ((self.conv(x) - self.mean.reshape(-1, 1, 1)) / inverse * self.two + self.alpha)


LEARNED = {
    "ReZero": residual,
    "frozen statistics that train": normalised_by_hand,
    "a temperature": lambda self, x: self.conv(x) * self.alpha.exp(),
    "weights of a sum": lambda self, x: self.gated(self.conv(x), self.other(x)),
    "behind a ReLU": lambda self, x: F.relu(self.conv(x)) * self.gain[:, None, None],
}


def network_with_constants(name):
    torch.manual_seed(0)
    network = Network(
        lambda self, x: self.fc(LEARNED[name](self, x).mean((2, 3))),
        conv=conv(), same=conv(6), other=conv(), fc=nn.Linear(6, 5), gated=Gated(),
        alpha=nn.Parameter(torch.tensor([0.3])), gain=nn.Parameter(torch.linspace(-1, 2, 6)),
        mean=nn.Parameter(torch.linspace(-1, 1, 6)),
    ).eval()  # fmt: skip
    network.register_buffer("two", torch.tensor(2.0))
    return network


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_beside_layers_trains_on_and_folds_at_convert(name):
    network = network_with_constants(name)
    prepared = qdeploy.prepare(network, images(2), "simqat")
    with transparent(prepared):
        for model in (network, prepared):
            model(images()).square().mean().backward()
    learned = [
        (parameter, prepared.get_parameter(name))
        for name, parameter in network.named_parameters()
        if parameter.ndim == 1 and parameter.grad is not None and not name.endswith("bias")
    ]
    assert learned
    for parameter, kept in learned:
        torch.testing.assert_close(kept.grad, parameter.grad, atol=1e-5, rtol=1e-3)
    with torch.no_grad():  # as a step of training would
        for parameter in itertools.chain(*learned):
            parameter.mul_(1.5).sub_(0.7)
    qdeploy.calibrate(prepared, [images()], ranges="minmax")
    close(qdeploy.convert(prepared)(images()), network(images()))


@pytest.mark.parametrize("method", ["simqat", "dorefa", "pact", "lsq", "int8_training", "ternary"])
def test_a_branch_that_starts_at_0_gets_a_gradient(method):
    network = network_with_constants("ReZero")
    nn.init.zeros_(network.alpha)
    bits = 2 if method == "ternary" else 8
    prepared = qdeploy.prepare(network, images(2), method, bits).train()
    prepared(images()).square().mean().backward()
    assert prepared.alpha.grad.abs() > 0


def test_stochastic_depth_drops_in_training_alone():
    network = nn.Sequential(conv(), StochasticDepth(0.5), nn.Flatten(), nn.Linear(384, 5))
    prepared = prepared_float(network, images(2)).train()
    assert isinstance(prepared.get_submodule("1"), TrainingOnly)
    torch.manual_seed(0)
    kept = prepared(images(64)) - prepared.get_submodule("3").bias
    dropped = (kept.abs().amax(1) < 1e-3).float().mean().item()
    assert 0.2 < dropped < 0.8
    prepared.eval()
    close(prepared(images()), network.eval()(images()))


def sized(self, x):
    height, width = x.shape[-2:]
    assert height == width == 8, "only squares"
    x = x[:, :, : height // 2] if x.size(0) * 0 == 0 and x.dim() == 4 else x
    return self.fc(self.conv(x).reshape(len(x.shape) * x.shape[0] // 4, -1))


def test_forward_may_compute_with_sizes_and_the_batch_stays_free():
    network = Network(sized, conv=conv(), fc=nn.Linear(192, 5)).eval()
    traced = trace(network, images(2))
    for count in (1, 7):
        torch.testing.assert_close(traced(images(count)), network(images(count)))


def test_a_layer_with_a_forward_of_its_own_is_quantized_by_its_name():
    network = nn.Sequential(Conv2dSame(3, 6, 3, stride=2), nn.ReLU(), conv(6, 4))
    prepared = prepared_float(network, images(2))
    assert [name for name, _ in prepared.quantized_layers()] == ["0", "2"]
    close(prepared(images()), network(images()))


def test_a_weight_that_two_modules_share_stays_with_both():
    network = Network(
        lambda self, x: F.linear(
            self.table(x[:, 0, 0].long().abs().clamp(max=9)), self.table.weight
        ),
        table=nn.Embedding(10, 6),
    )
    prepared = prepared_float(network, images(2))
    assert {name for name, _ in prepared.quantized_layers()} == {"table", "table_weight_layer"}
    assert prepared.table.quantizer is prepared.table_weight_layer.quantizer
    close(prepared(images()), network(images()))


def branching(self, x):
    return self.conv(x) if x.sum() > 0 else self.conv(-x)  # depends on values


def untraceable():
    return nn.Sequential(conv(3, 6), nn.ReLU(), Network(branching, conv=conv(6, 6)), conv(6, 4))


def test_what_cannot_be_traced_is_named_with_the_way_out():
    lines = Path(__file__).read_text().splitlines()
    number = 1 + next(i for i, line in enumerate(lines) if "# depends on values" in line)
    place = re.escape(f"{__file__}, line {number}")
    with pytest.raises(QdeployError, match=f"{place}.*name the module that does it in `leaves`"):
        qdeploy.prepare(untraceable(), images(2), "simqat")


def test_leaves_stay_whole_and_float():
    network = untraceable().eval()
    prepared = prepared_float(network, images(2), leaves=["2"])
    assert [name for name, _ in prepared.quantized_layers()] == ["0", "3"]
    assert torch.equal(prepared.get_submodule("2").conv.weight, network[2].conv.weight)
    close(prepared.eval()(images()), network(images()))
    quantized = qdeploy.prepare(network, images(2), "simqat", leaves=["2"])
    assert "2: float" in str(quantized)
    # What the leaf alone reads stays float; what it gives is quantized for the layer behind.
    assert [name for name, _ in activations(quantized).items()] == [
        "input_1", "_2", "_3",
    ]  # fmt: skip
    with pytest.raises(QdeployError, match=r"leaves: 'head\*' matches no module"):
        prepared_float(network, images(2), leaves=["head*"])


def test_a_wrong_shape_names_the_layer():
    network = nn.Sequential(conv(), nn.Sequential(nn.ReLU(), conv(4, 6)))
    with pytest.raises(QdeployError, match=r"shape \[2, 3, 8, 8\] in 1\.1: "):
        trace(network, images(2))


def test_an_output_that_changes_between_calls_is_named():
    network = Network(lambda self, x: self.conv(F.relu(x) + torch.rand_like(x)), conv=conv())
    with pytest.raises(QdeployError, match="rand_like gives another value at every call"):
        trace(network, images(2))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 4.0), (-8.0, 5.0), (-3.0, 0.1), (-1.0, 90.0)])
def test_the_gate_of_a_hardswish_is_a_clamp_of_the_codes_it_reads(low, high):
    quantizer = GateRange(8)
    quantizer.observe(torch.tensor([low, high]))
    scale, zero = (part.item() for part in quantizer.qparams())
    steps = round(3 / scale)
    assert steps * scale == pytest.approx(3, rel=1e-5)
    assert zero >= steps
    assert (255 - zero) * scale > high - scale
    assert -zero * scale < low + scale
    codes = torch.arange(256)
    values = (codes - zero) * scale
    gate = (codes.clamp(zero - steps, zero + steps) - (zero - steps)) * scale / 6
    torch.testing.assert_close(gate, F.hardsigmoid(values), atol=1e-5, rtol=0)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


# prepare's own check compares them in training.
NOT_IN_TRAINING = {
    "a shift behind a dropout": lambda self, x: self.dropout(self.conv(x)) + 0.5,
    "a shift behind noise": lambda self, x: self.noise(self.conv(x)) * 2 + self.alpha,
    "a ReLU behind noise": lambda self, x: F.relu(self.noise(self.conv(x))),
    "a ReLU of parts": lambda self, x: F.relu(torch.cat(self.conv(x).chunk(2, 1)[::-1], 1)),
    "written in evaluation alone": lambda self, x: (y := self.conv(x), self.dropout(y).mul_(2), y)[
        2
    ],
}


@pytest.mark.parametrize("name", NOT_IN_TRAINING)
def test_what_evaluation_passes_by_stays_where_it_is_in_training(name):
    network = Network(
        lambda self, x: self.last(NOT_IN_TRAINING[name](self, x)),
        conv=conv(), dropout=nn.Dropout(0.5), noise=Noise(), last=conv(6),
        alpha=nn.Parameter(torch.tensor(0.3)),
    )  # fmt: skip
    qdeploy.prepare(network, images(2), "simqat")


def test_attention_without_heads_and_with_a_mask_ships(tmp_path):
    """torch.onnx knows attention on four axes alone."""

    def forward(self, x):
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        q, k, v = self.queries(x).chunk(3, -1)
        return self.last(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    torch.manual_seed(0)
    network = Network(forward, queries=nn.Linear(8, 24), last=nn.Linear(8, 4)).eval()
    x = torch.randn(3, 6, 8)
    prepared = qdeploy.prepare(network, x, "simqat")
    qdeploy.calibrate(prepared, [x])
    file = qdeploy.export(prepared, tmp_path / "model.onnx", x)
    found = torch.from_numpy(run(onnx.load(file), x))
    assert (found - network(x)).norm() < 0.03 * network(x).norm()
