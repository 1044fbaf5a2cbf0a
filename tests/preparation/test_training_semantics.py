"""What trains in the float network trains in the prepared one, and nothing else does."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Network, awkward_norms, build, conv, images
from torch import nn

import qdeploy
from qdeploy import methods
from qdeploy.errors import QdeployError
from qdeploy.layers.transparent import transparent
from qdeploy.preparation.same_numbers import same_numbers

FEWEST = [
    (
        name,
        methods.find(name).weight_bits[0],
        max(methods.find(name).act_bits, key=lambda b: b == 8),
    )
    for name in methods.available()
]
every_method = pytest.mark.parametrize(
    ("method", "bits", "acts"), FEWEST, ids=[m[0] for m in FEWEST]
)


def prepared_of(network, method="simqat", bits=8, acts=8, x=None, **options):
    x = images(3) if x is None else x
    return qdeploy.prepare(network.train(), x, method, bits, acts, **options)


def train(prepared, x=None):
    """With momentum and weight decay, which move what has no gradient; to the end of any search."""
    parameters = prepared.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    for epoch in (0, 1, 9):
        prepared.train().set_progress(epoch, 10)
        optimizer.zero_grad()
        prepared(images(3) if x is None else x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_transparent_every_parameter_learns_what_it_learned(name):
    network = build(name).train()
    prepared = prepared_of(network)
    outputs = []
    for given in (prepared, network):
        with transparent(prepared), same_numbers([torch.device("cpu")]):
            outputs.append(given(images(3)))
    weights = torch.randn(outputs[0].shape)
    for output in outputs:
        (output * weights).sum().backward()
    ours = [sorted_with_gradient(p) for p in prepared.parameters() if p.grad is not None]
    for label, theirs in network.named_parameters():
        if theirs.grad is None or theirs.grad.abs().max() < 1e-4:  # a bias that a norm takes away
            continue
        values, wanted = sorted_with_gradient(theirs)
        found = [grad for latent, grad in ours if torch.equal(latent, values)]
        assert any(F.cosine_similarity(grad, wanted, 0) > 0.99 for grad in found), label


def sorted_with_gradient(parameter):
    """Values in ascending order, each with its gradient: a transposed layer's axes change places."""
    values, order = parameter.detach().flatten().sort()
    return values, parameter.grad.flatten()[order]


@pytest.mark.parametrize("fold", ["one-conv", "two-conv"])
def test_a_layer_scale_folds_as_the_constants_that_it_is(fold):
    """It has no statistics of a batch, and its channels may be the last axis."""
    network = Network(lambda self, x: self.fc(x) * self.scale, fc=nn.Linear(8, 6))
    network.scale = nn.Parameter(torch.linspace(-1, 1, 6))
    prepared_of(network, fold=fold)


def frozen(module):
    return module.requires_grad_(False)


@every_method
def test_what_is_frozen_stays_frozen(method, bits, acts):
    parts = (
        conv(3, 6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 4),
    )
    network = awkward_norms(nn.Sequential(*parts))
    for part in network[:2]:
        frozen(part)
    network[3].bias.requires_grad_(False)
    prepared = prepared_of(network, method, bits, acts)
    layers = dict(prepared.quantized_layers())
    kept = [layers["0"].quantizer.latent, layers["0"].bias, layers["3"].bias]
    kept += [layers["0"].norm.weight, layers["0"].norm.bias]
    moves = [layers["3"].quantizer.latent, layers["6"].bias, layers["3"].norm.weight]
    before = copy.deepcopy([kept, moves])
    train(prepared)
    assert all(map(torch.equal, kept, before[0]))
    assert not any(map(torch.equal, moves, before[1]))


def test_what_is_no_parameter_becomes_none():
    """A kernel that is a buffer, and the gain that equalizing gives a norm that had none."""

    def forward(self, x):
        return self.last(F.relu(self.norm(self.conv(F.conv2d(x, self.kernel, padding=1)))))

    network = Network(
        forward, conv=conv(2, 6), norm=nn.BatchNorm2d(6, affine=False), last=conv(6, 4)
    )
    network.register_buffer("kernel", torch.randn(2, 3, 3, 3))
    prepared = prepared_of(network, equalize=True)
    trained = [p for p in prepared.parameters() if p.requires_grad]
    assert len(trained) == len([*network.parameters()])


def test_attention_that_is_frozen_stays_frozen():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = frozen(nn.MultiheadAttention(8, 2)), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.attention(x, x, x)[0])

    prepared = prepared_of(Attention(), x=torch.randn(5, 3, 8))
    assert len([p for p in prepared.parameters() if p.requires_grad]) == 2


class Tied(nn.Module):
    """Two convolutions of one weight, one with a norm behind it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = conv(3, 3, bias=False), conv(3, 3), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


@every_method
def test_layers_of_one_weight_are_still_of_one(method, bits, acts):
    prepared = prepared_of(Tied(), method, bits, acts)
    assert "b.weight" not in dict(prepared.named_parameters())
    train(prepared)
    qdeploy.calibrate(prepared, [images(3)])
    converted = qdeploy.convert(prepared)
    a, b = (converted.get_submodule(name) for name in ("a", "b"))
    gain = prepared.a.norm.weight
    mirrored = torch.where(gain.reshape(-1, 1, 1, 1) < 0, -1, 1)
    assert torch.equal(a.codes, (b.codes * mirrored).to(a.codes))


class Language(nn.Module):
    """Words in and words out are one table."""

    def __init__(self):
        super().__init__()
        self.embedding, self.fc, self.out = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7)
        self.out.weight = self.embedding.weight

    def forward(self, words):
        return self.out(F.relu(self.fc(self.embedding(words))))


words = torch.arange(12).reshape(3, 4) % 7


@pytest.mark.parametrize("method", ["simqat", "lsq", "dorefa", "pact"])
def test_a_layer_is_tied_to_what_stays_in_float(method):
    prepared = prepared_of(Language(), method, 4, 8, x=words, layers={"embedding": "float"})
    train(prepared, words)
    table = prepared.embedding.weight
    assert prepared.out.quantizer.latent is table
    assert not torch.equal(table, Language().embedding.weight)
    copied = copy.deepcopy(prepared)
    assert copied.out.quantizer.latent is copied.embedding.weight


def test_a_weight_that_forward_reads_itself_is_the_one_that_trains():
    def forward(self, x):
        y = self.norm(self.conv2(x)) * self.norm.weight.sum()
        return torch.cat([self.conv(x), x * self.conv.weight.square().sum(), y], 1)

    network = Network(forward, conv=conv(3, 4), conv2=conv(3, 4), norm=nn.BatchNorm2d(4))
    prepared = prepared_of(network)
    with torch.no_grad():
        for factor, part in enumerate((network.conv, network.norm), start=2):
            part.weight.mul_(factor)
        prepared.conv.quantizer.latent.mul_(2)
        prepared.conv2.norm.weight.mul_(3)
        with transparent(prepared):
            torch.testing.assert_close(prepared(images(3)), network(images(3)))


@pytest.mark.parametrize(
    ("network", "x", "given", "named"),
    [
        (
            Language(),
            words,
            {"method": "slb", "bits": 1, "linear": True, "layers": {"embedding": "float"}},
            "embedding.weight",
        ),
        (Tied(), None, {"layers": {"a": {"weight_bits": 4}}}, "a, b share one weight"),
    ],
)
def test_what_cannot_stay_tied_is_refused(network, x, given, named):
    with pytest.raises(QdeployError, match=rf'{named}.* Set all .*"float"'):
        prepared_of(network, x=x, **given)


def test_a_transposed_layer_cannot_share():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 3, 3))
    network[2].weight = network[0].weight
    with pytest.raises(QdeployError, match="0, 2 share one weight"):
        prepared_of(network)
    prepared = prepared_of(network, layers={"*": "float"}, method="simqat")
    assert prepared.get_submodule("0").weight is prepared.get_submodule("2").weight


class FrozenNorms(nn.Module):
    """Its train() leaves the pretrained norms in evaluation, one behind a layer and one that is not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm1, self.norm2 = conv(3, 6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv(x)))
        return self.fc(self.drop(F.relu(self.norm2(F.max_pool2d(x, 2))).mean((2, 3))))

    def train(self, mode=True):
        super().train(mode)
        for norm in (self.norm1, self.norm2):
            norm.eval()
        return self


@pytest.mark.parametrize("method", ["simqat", "int8_training"])
def test_a_norm_that_stays_in_evaluation_stays_so(method):
    prepared = prepared_of(awkward_norms(FrozenNorms()), method)
    norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
    before = copy.deepcopy([norm.state_dict() for norm in norms])
    copy.deepcopy(prepared).train()(images(3))
    prepared.eval().train()(images(3))
    assert prepared.training
    assert prepared.drop.training
    for norm, state in zip(norms, before, strict=True):
        assert not norm.training
        assert all(torch.equal(norm.state_dict()[key], value) for key, value in state.items())


def test_a_search_that_was_never_told_of_its_progress_is_named():
    network = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    prepared = prepared_of(network, "slb", 1)
    prepared(images(3))
    with pytest.warns(
        UserWarning, match=r"search .* not over \(temperature 1\).*set_progress\(epoch"
    ):
        qdeploy.convert(prepared)
    prepared.set_progress(9, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qdeploy.convert(prepared)


class Universal(nn.Module):
    """One block under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = self.first

    def forward(self, x):
        x = x + self.first(x, x, x)[0]
        return x + self.second(x, x, x)[0]


def test_attention_that_has_two_names_is_one():
    prepared, count = prepared_of(Universal(), x=torch.randn(2, 5, 8)), Universal().parameters()
    assert sum(p.numel() for p in prepared.parameters()) == sum(p.numel() for p in count)
    assert all(settings is not None for settings in prepared.settings.values())


class Decoder(nn.Module):
    """Attention with a mask, and dropout in it."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, x):
        return self.layers(x, self.mask)


def test_attention_with_a_mask_drops_out_as_well():
    """The check of prepare draws the same numbers for both networks."""
    x = torch.randn(2, 5, 8)
    prepared = prepared_of(Decoder(), x=x)
    dropouts = [m for m in prepared.modules() if isinstance(m, nn.Dropout)]
    for dropout in dropouts:
        dropout.eval()
    with transparent(prepared):
        assert not torch.equal(prepared(x), prepared(x))
