"""What every method owes, whatever its paper says. A new file in qdeploy/methods is tested here too.

Each method runs at each of its bit widths, and at its fewest and most bits with each other value
of its yes-or-no and one-of-several options. Methods of other packages are tested as well: install
the package and run this file.
"""

import copy
import functools
import itertools
import typing

import numpy as np
import onnxruntime
import pytest
import torch
from float_layers import CASES, build, multiply, norm_for, with_its_norm
from onnx_reference import evaluator
from quantizers import calls
from torch import nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy import methods
from qdeploy.deploy.export import finished, to_onnx
from qdeploy.errors import QdeployError
from qdeploy.layers.norm import gain_of
from qdeploy.layers.product import product_of
from qdeploy.layers.transparent import transparent
from qdeploy.methods import ActivationSite, WeightSite
from qdeploy.preparation.quantized_weights import quantized_layer, quantizer_of
from qdeploy.preparation.settings import layer_settings

WIDTHS = [(name, bits) for name in methods.available() for bits in methods.find(name).weight_bits]


def widths_of_both():
    """(method, weight bits, activation bits): each width of the one beside one of the other."""
    for name in methods.available():
        weights, acts = methods.find(name).weight_bits, methods.find(name).act_bits
        usual = min(acts, key=lambda bits: abs(bits - 8))
        yield from ((name, bits, usual) for bits in weights)
        yield from ((name, min(weights[-1], bits), bits) for bits in acts if bits != usual)


def other_values(field):
    """Values of an option other than its default, where they can be listed."""
    if field.annotation is bool:
        return [not field.default]
    if typing.get_origin(field.annotation) is typing.Literal:
        return [value for value in typing.get_args(field.annotation) if value != field.default]
    return []


def variants():
    """(id, method, bits, options): the defaults at every width, one option changed at two of them."""
    for name, bits in WIDTHS:
        method = methods.find(name)
        yield f"{name}-w{bits}", name, bits, {}
        if bits not in (min(method.weight_bits), max(method.weight_bits)):
            continue
        for option, field in method.options.model_fields.items():
            for value in other_values(field):
                yield f"{name}-w{bits}-{option}={value}", name, bits, {option: value}


def variants_on_layers():
    """The defaults on every layer, changed options on two of them."""
    for label, name, bits, options in variants():
        for case in ("conv2d-groups", "linear") if options else CASES:
            yield pytest.param(name, bits, options, case, id=f"{label}-{case}")


def pairwise(cases):
    """Those that show two values together which no case before them did.

    What one value breaks, or two of them together, breaks in one of these as well.
    """
    seen = set()
    for case in cases:
        pairs = set(itertools.combinations(enumerate(case), 2))
        if not pairs <= seen:
            yield case
        seen |= pairs


def converted_layers():
    """(method, weight bits, activation bits, layer, with its norm), each two together once."""
    widths = dict.fromkeys(widths_of_both())
    return pairwise((*w, case, norm) for w in widths for case in CASES for norm in (True, False))


every_variant = pytest.mark.parametrize(
    ("name", "bits", "options"), [pytest.param(*rest, id=label) for label, *rest in variants()]
)
every_variant_on_layers = pytest.mark.parametrize(
    ("name", "bits", "options", "case"), list(variants_on_layers())
)
every_width = pytest.mark.parametrize(("name", "bits", "acts"), dict.fromkeys(widths_of_both()))
with_and_without_norm = pytest.mark.parametrize("with_norm", [True, False], ids=["norm", "bare"])


def settings(name, bits, options):
    """Of a layer alone; activations as wide as any options go with."""
    return layer_settings(name, bits, max(methods.find(name).act_bits), options)


def quantized(name, bits, options, case, with_norm, seed=0):
    """(the quantized layer, the float layer it was made of, a batch of inputs)."""
    layer, norm, x = build(case, seed)
    made = joined(copy.deepcopy(layer), norm if with_norm else None, settings(name, bits, options))
    return made, layer, x


def joined(layer, norm, chosen):
    quantizer = quantizer_of(WeightSite(layer.weight, norm is not None), chosen)
    norm = None if norm is None else chosen.method.norm(norm, chosen.options)
    return with_its_norm(quantized_layer(layer, norm, chosen, quantizer))


def gain_in_the_weight(layer):
    return None if layer.fold == "none" else gain_of(layer.norm)


def shipped(layer):
    """The collapsed weight, before BatchNorm is folded into its scale."""
    quantizer = layer.quantizer
    return quantizer.collapse(quantizer.scaled_latent(gain_in_the_weight(layer))).cpu().checked()


@every_variant_on_layers
@with_and_without_norm
def test_evaluation_multiplies_by_what_ships_bit_for_bit(name, bits, options, case, with_norm):
    made, layer, x = quantized(name, bits, options, case, with_norm)
    made.eval()
    weight = shipped(made).dequantize()
    assert torch.equal(made.quantizer(gain_in_the_weight(made)), weight)
    if made.fold == "none" and made.product.shipped == product_of(layer):
        with torch.no_grad():
            layer.weight.copy_(weight)
        y = layer(x)
        assert torch.equal(made(x), y if made.norm is None else made.norm(y))


@every_variant_on_layers
@with_and_without_norm
def test_codes_are_on_the_grid_and_scales_are_positive(name, bits, options, case, with_norm):
    made, layer, _ = quantized(name, bits, options, case, with_norm)
    weight = shipped(made)
    assert weight.codes.dtype == weight.zero.dtype == (torch.int8 if bits <= 8 else torch.int16)
    assert weight.scale.dtype == torch.float32
    assert weight.codes.shape == layer.weight.shape
    assert weight.scale.shape == weight.zero.shape == (len(layer.weight),)
    assert set(weight.codes.unique().tolist()) <= set(made.quantizer.grid.codes)
    assert made.quantizer.grid.bits <= bits
    assert weight.scale.isfinite().all()
    assert (weight.scale > 0).all()
    assert ((weight.grid.lowest <= weight.zero) & (weight.zero <= weight.grid.highest)).all()


@every_variant_on_layers
@with_and_without_norm
def test_folded_integers_give_what_evaluation_gives(name, bits, options, case, with_norm):
    made, layer, x = quantized(name, bits, options, case, with_norm)
    weight, bias = made.eval().integers()
    if made.product.shipped != product_of(layer):
        pytest.skip("the product that ships is the method's own")
    y = multiply(layer, x, weight.dequantize(), bias)
    torch.testing.assert_close(made(x), y, rtol=1e-4, atol=1e-4)


@every_variant_on_layers
@with_and_without_norm
def test_the_latent_gets_a_finite_gradient_that_is_not_zero(name, bits, options, case, with_norm):
    made, _, x = quantized(name, bits, options, case, with_norm)
    y = made.train()(x)
    (y * torch.randn_like(y)).sum().backward()
    assert made.quantizer.latent.grad.any()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@every_variant_on_layers
@with_and_without_norm
def test_transparent_it_computes_and_learns_as_in_float(name, bits, options, case, with_norm):
    """Outputs, and the gradients of inputs, bias and norm; that of the weight where it is the latent."""
    made, layer, x = quantized(name, bits, options, case, with_norm)
    norm = norm_for(layer) if with_norm else nn.Identity()
    network = nn.Sequential(layer, norm)
    for training in (False, True):
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        with transparent(made):
            y = made.train(training)(ours)
        wanted = network.train(training)(theirs)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        weights = torch.randn(y.shape)
        for module, output in ((made, y), (network, wanted)):
            module.zero_grad()
            (output * weights).sum().backward()
        pairs = [(ours, theirs), (made.bias, layer.bias)]
        if with_norm:
            pairs += [(made.norm.weight, norm.weight), (made.norm.bias, norm.bias)]
        if made.quantizer.origin is None:
            pairs.append((made.quantizer.latent, layer.weight))
        assert made.quantizer.latent.grad.any()
        for mine, other in pairs:
            if (
                mine is not None and other.grad.abs().max() > 1e-4
            ):  # but a bias that a norm takes away
                assert torch.cosine_similarity(mine.grad.flatten(), other.grad.flatten(), 0) > 0.99


@every_variant
def test_a_float_weight_with_dead_channels_can_be_trained(name, bits, options):
    """All-zero channels, with no BatchNorm: no division by their range, size or deviation."""
    layer, _, x = build("conv2d-bias")
    nn.init.zeros_(layer.weight[:3])
    made = joined(layer, None, settings(name, bits, options))
    y = made.train()(x)
    (y * torch.randn_like(y)).sum().backward()
    assert made.quantizer.latent.grad.abs().max() < 1e4
    assert torch.isfinite(made.eval()(x)).all()
    assert (shipped(made).scale > 0).all()


def activations():
    """(method, bits, options, nonnegative): every width, and other options at two of them."""
    for _, name, _, options in dict.fromkeys(
        (None, n, None, tuple(o.items())) for _, n, _, o in variants()
    ):
        acts = methods.find(name).act_bits
        for bits in {min(acts), max(acts)} if options else acts:
            for nonnegative in (True, False):
                yield name, bits, dict(options), nonnegative


def activation(name, bits, options, nonnegative=False):
    method = methods.find(name)
    try:
        return method.activation(ActivationSite(nonnegative), bits, method.options(**options))
    except QdeployError as reason:
        return pytest.skip(str(reason))


@pytest.mark.parametrize(("name", "bits", "options", "nonnegative"), list(activations()))
def test_training_rounds_an_activation_to_what_ships(name, bits, options, nonnegative):
    made = activation(name, bits, options, nonnegative)
    x = torch.randn(5, 7, 4, 4) * 1.5
    x = (x.relu() if nonnegative else x).requires_grad_()
    made.train()(x.detach())
    y = made.relax(x)
    assert torch.equal(made.eval()(x.detach()), y)
    scale, zero = (part.detach() for part in made.qparams())
    codes = y.detach() / scale + zero
    assert (codes - codes.round()).abs().max() < 1e-2
    assert set(codes.round().unique().tolist()) <= set(made.grid.codes)
    assert len(codes.round().unique()) > 1
    assert made.grid.bits <= bits
    assert 0 <= made.grid.lowest <= zero <= made.grid.highest < 2 ** (8 if bits <= 8 else 16)
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad.any()
    for parameter in (x, *made.parameters()):
        assert torch.isfinite(parameter.grad).all()


def test_there_is_a_quantizer_for_what_no_layer_reads():
    for name in methods.available():
        method = methods.find(name)
        assert method.carrier is not None or 8 in method.act_bits
        if method.carrier is not None:
            made = method.carrier(8, method.options()).train()
            x = torch.randn(4, 3, 5, 5)
            made(x)
            assert (made.eval()(x) - x).abs().max() < (x.max() - x.min()) / 255


def with_activations(name, bits, options, seed):
    """One quantized layer between two activation quantizers, and its inputs."""
    made, _, x = quantized(name, bits, options, "conv2d-groups", True, seed)
    act_bits = max(methods.find(name).act_bits)
    around = (activation(name, act_bits, options) for _ in range(2))
    return nn.Sequential(next(around), made, next(around)), x


@every_variant
def test_the_state_dict_holds_all_that_evaluation_needs(name, bits, options):
    first, x = with_activations(name, bits, options, seed=0)
    second, _ = with_activations(name, bits, options, seed=1)
    for _ in range(2):
        first.train()(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(x), first.eval()(x))


def toy(count=64):
    """Images [N, 3, 8, 8] of two classes: which diagonal is bright."""
    random = torch.Generator().manual_seed(4)
    labels = torch.randint(2, (count,), generator=random)
    bright = torch.stack([torch.eye(8), torch.eye(8).flip(0)])[labels].unsqueeze(1)
    return bright + torch.randn(count, 3, 8, 8, generator=random) * 0.5, labels


class ToyNetwork(nn.Module):
    """Conv2d, Conv1d and Linear, stride, groups, bias, gains below and at 0, one layer without norm."""

    def __init__(self, between=torch.relu):
        super().__init__()
        self.between = between
        self.conv1 = nn.Conv2d(3, 9, 3, padding=1, stride=2, bias=False)
        self.norm1 = norm_for(self.conv1)
        self.conv2 = nn.Conv2d(9, 6, 3, groups=3, dilation=2, padding=2)
        self.norm2 = norm_for(self.conv2)
        self.conv3 = nn.Conv1d(6, 5, 3, stride=2)
        self.norm3 = norm_for(self.conv3)
        self.fc1 = nn.Linear(35, 7)
        self.fc2 = nn.Linear(7, 2)

    def forward(self, x):
        x = self.between(self.norm1(self.conv1(x)))
        x = self.between(self.norm2(self.conv2(x)))
        x = self.between(self.norm3(self.conv3(x.flatten(2))))
        return self.fc2(self.between(self.fc1(x.flatten(1))))


def between(acts):
    """One bit of what a ReLU gives tells little, of a signed value its sign."""
    return nn.functional.hardtanh if acts == 1 else torch.relu


def prepared_toy(name, bits, acts, seed=0):
    torch.manual_seed(seed)
    network = ToyNetwork(between(acts))
    return qdeploy.prepare(network, toy()[0], name, weight_bits=bits, act_bits=acts)


def train(prepared, epochs=10, steps=4):
    """Returns the loss before training, in training mode, and that of what ships at the end."""
    x, labels = toy()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        prepared.train().set_progress(epoch, epochs)
        for _ in range(steps):
            optimizer.zero_grad()
            losses.append(cross_entropy(prepared(x), labels))
            losses[-1].backward()
            optimizer.step()
    qdeploy.calibrate(prepared, [x], batch_norm=True)
    with torch.no_grad():
        return losses[0].item(), cross_entropy(prepared.eval()(x), labels).item()


@functools.cache
def trained_toy(name, bits, acts):
    """The network after training, what ships of it calibrated, and the losses of `train`."""
    prepared = prepared_toy(name, bits, acts)
    return prepared, train(prepared)


@every_width
def test_training_lowers_the_loss_of_what_ships(name, bits, acts):
    _, (before, after) = trained_toy(name, bits, acts)
    assert after < (0.3 if acts > 2 else 0.55)
    assert after < before / (2 if acts > 2 else 1.2)


@every_width
def test_at_the_last_epoch_the_search_is_over(name, bits, acts):
    prepared = prepared_toy(name, bits, acts)
    prepared.set_progress(9, 10)
    assert not prepared.searching


@every_width
def test_the_same_seed_trains_the_same_network(name, bits, acts):
    first, second = (prepared_toy(name, bits, acts, seed=3) for _ in range(2))
    for prepared in (first, second):
        torch.manual_seed(5)
        train(prepared, epochs=2, steps=1)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def outputs(network, names, x):
    """What the submodules called `names` give for x."""
    kept = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, y, name=name: kept.__setitem__(name, y)
        )
    with torch.no_grad():
        network(x)
    return kept


@pytest.mark.parametrize(("name", "bits", "acts", "case", "with_norm"), list(converted_layers()))
def test_the_converted_layer_gives_what_evaluation_gives_to_one_step(
    name, bits, acts, case, with_norm
):
    """Its int32 bias and folded scale may tip a value that lies between two steps."""
    layer, norm, x = build(case)
    normed = [norm] if with_norm else []
    relu = nn.Hardtanh() if acts == 1 else nn.ReLU()
    network = nn.Sequential(layer, *normed, relu, nn.Flatten(), nn.LazyLinear(2))
    network.eval()(x)
    prepared = qdeploy.prepare(network, x, name, weight_bits=bits, act_bits=acts)
    qdeploy.calibrate(prepared, [x], batch_norm=True)
    prepared.eval()
    converted = qdeploy.convert(prepared)

    names = {node.target: f"activations.{read}" for read, node in calls(prepared).items()}
    assert len(names) == 2  # the input, and what the ReLU gives
    wanted = outputs(prepared, names, x).values()
    (image, rounded), (own_image, got) = wanted, outputs(converted, names.values(), x).values()
    assert torch.equal(own_image, image)
    steps = (got - rounded) / converted.get_submodule([*names.values()][1]).scale
    assert steps.abs().max() < (1.01 if acts <= 8 else 20)
    tipped = (steps.abs() > 0.5).sum()
    assert tipped <= max(2, (0.03 if acts <= 8 else 0.6) * steps.numel())
    assert rounded.unique().numel() > 1


def pairs_of_grids():
    """The first width of each two grids and product: a file knows no more of a method than these."""
    forms = {}
    for width in dict.fromkeys(widths_of_both()):
        name, bits, acts = width
        layer, _, _ = quantized(name, bits, {}, "conv2d", True)
        between = activation(name, acts, {}, nonnegative=acts > 1)
        forms.setdefault((layer.quantizer.grid, between.grid, layer.product.shipped), width)
    return forms.values()


@pytest.mark.parametrize(("name", "bits", "acts"), list(pairs_of_grids()))
def test_the_file_agrees_with_the_converted_network(name, bits, acts):
    """In ONNX Runtime and in onnx's own evaluator, packed and not."""
    prepared, _ = trained_toy(name, bits, acts)
    x = toy()[0][:16]
    converted = qdeploy.convert(prepared)
    graph = to_onnx(copy.deepcopy(converted), x)
    packed, plain = (finished(graph, packing, {}) for packing in (True, False))
    found = [computed(file, x) for file in (packed, plain)]
    np.testing.assert_array_equal(*found)
    with torch.no_grad():
        wanted = converted(x).numpy()
    if max(bits, acts) <= 8:
        np.testing.assert_array_equal(found[0], wanted)
    reference = evaluator(packed).run(None, {"input": x.numpy()})[0]
    for logits in (found[0], reference):
        # A value on a tie may tip over, and at few bits one step is far.
        tolerance = 1e-4 * np.abs(wanted).max()
        assert (np.abs(logits - wanted) <= tolerance).mean() > (0.95 if acts > 4 else 0.8)
        assert np.abs(logits - wanted).max() < (0.1 if acts > 4 else 0.5) * np.abs(wanted).max()


def computed(file, x):
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": x.numpy()})[0]
