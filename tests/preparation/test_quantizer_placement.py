"""Where activations are quantized: read off small networks, against the rules written by hand."""

import dataclasses
import operator

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Network, build, conv, conv_norm_relu, images
from quantizers import activations
from torch import nn

import qdeploy
from qdeploy import methods
from qdeploy.layers.activation import ActivationQuantizer, MovingRange
from qdeploy.preparation.prepared import graph_module


def quantized_places(network, **options):
    """{what makes the values: the quantizer's module path}, in the order of the graph."""
    prepared = qdeploy.prepare(network, images(2), "simqat", **options)
    graph = graph_module(prepared).graph
    modules = dict(prepared.named_modules())
    return {
        node.all_input_nodes[0].name: node.target
        for node in graph.nodes
        if node.op == "call_module" and isinstance(modules[node.target], ActivationQuantizer)
    }


def places(function, **parts):
    return list(quantized_places(Network(function, **parts)))


def head(self, x):
    return self.fc(torch.flatten(x, 1))


RELUS = {
    "nn.ReLU": lambda self, x: self.relu(x),
    "in place": lambda self, x: self.inplace(x),
    "F.relu": lambda self, x: F.relu(x),
    "F.relu in place": lambda self, x: F.relu(x, inplace=True),
    "F.relu by keyword": lambda self, x: F.relu(input=x),
    "torch.relu": lambda self, x: torch.relu(x),
    "method": lambda self, x: x.relu(),
    "method in place": lambda self, x: x.relu_(),
    "ReLU6": lambda self, x: self.relu6(x),
    "clamp": lambda self, x: torch.clamp(x, 0, 6),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_one_quantizer_after_conv_norm_and_relu_in_every_spelling(relu):
    found = places(
        lambda self, x: head(self, relu(self, self.norm(self.conv(x)))),
        conv=conv(),
        norm=nn.BatchNorm2d(6),
        fc=nn.Linear(384, 5),
        relu=nn.ReLU(),
        inplace=nn.ReLU(inplace=True),
        relu6=nn.ReLU6(),
    )
    assert found[0] == "x"
    assert len(found) == 2
    assert any(word in found[1] for word in ("relu", "inplace", "clamp"))


ADDITIONS = {
    "operator": lambda a, b: a + b,
    "in place": operator.iadd,
    "torch.add": torch.add,
    "method": lambda a, b: a.add(b),
    "method in place": lambda a, b: a.add_(b),
}


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_both_inputs_of_an_add_and_after_its_relu(add):
    found = places(
        lambda self, x: head(self, F.relu(add(self.a(x), self.b(x)))),
        a=conv(),
        b=conv(),
        fc=nn.Linear(384, 5),
    )
    assert found == ["x", "a", "b", "relu"]


def test_a_residual_block_quantizes_each_value_once():
    found = places(
        lambda self, x: head(self, self.block(self.stem(x))),
        stem=nn.Sequential(conv(), nn.ReLU()),
        block=Network(
            lambda self, x: F.relu(self.norm(self.conv(x)) + x),
            conv=conv(6, 6),
            norm=nn.BatchNorm2d(6),
        ),
        fc=nn.Linear(384, 5),
    )
    assert found == ["x", "stem_1", "block_conv", "relu"]


def test_nothing_is_quantized_on_the_way_out():
    assert places(lambda self, x: self.fc(x), fc=nn.Linear(8, 4)) == ["x"]
    assert places(lambda self, x: self.fc(x).reshape(2, -1), fc=nn.Linear(8, 4)) == ["x"]
    assert places(lambda self, x: F.avg_pool2d(self.conv(x), 2), conv=conv()) == ["x", "conv"]


def test_an_output_that_a_convolution_makes_is_quantized_for_its_kernel():
    assert places(lambda self, x: self.conv(x), conv=conv()) == ["x", "conv"]
    assert places(lambda self, x: self.conv(x).reshape(2, -1), conv=conv()) == ["x", "conv"]
    assert places(lambda self, x: F.relu(self.conv(x)), conv=conv()) == ["x", "relu"]


MOVES = {
    "max pooling": lambda self, x: F.max_pool2d(x, 1),
    "module": lambda self, x: self.pool(x),
    "reshape": lambda self, x: x.reshape(x.shape[0], 6, 8, 8),
    "view by size": lambda self, x: x.view(x.size(0), 6, 8, 8),
    "flatten and back": lambda self, x: x.flatten(1).unflatten(1, (6, 8, 8)),
    "transpose": lambda self, x: x.transpose(2, 3).contiguous(),
    "chunks": lambda self, x: torch.cat(x.chunk(2, 1), 1),
    "split": lambda self, x: torch.cat(torch.split(x, [2, 4], 1), 1),
    "swapped chunks": lambda self, x: torch.cat([x.chunk(2, dim=1)[1], x.chunk(2, dim=1)[0]], 1),
    "slice": lambda self, x: torch.cat((x[:, :2], x[:, 2:]), 1),
    "shuffle": lambda self, x: self.shuffle(x),
    "shuffle by hand": lambda self, x: (
        x.view(x.size(0), 2, 3, 8, 8).permute(0, 2, 1, 3, 4).reshape(-1, 6, 8, 8)
    ),
    "dropout": lambda self, x: F.dropout(x, 0.1, self.training),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moved_values_keep_their_quantizer(move):
    found = places(
        lambda self, x: head(self, F.relu(self.b(move(self, F.relu(self.a(x)))))),
        a=conv(),
        b=conv(6, 6),
        fc=nn.Linear(384, 5),
        pool=nn.MaxPool2d(3, 1, 1),
        shuffle=nn.ChannelShuffle(2),
    )
    assert found == ["x", "relu", "relu_1"]


def test_average_pooling_gets_its_own():
    for pool in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4)):
        found = places(
            lambda self, x: head(self, self.pool(F.relu(self.a(x)))),
            a=conv(),
            pool=pool,
            fc=nn.Linear(96, 5),
        )
        assert found == ["x", "relu", "pool"]


def test_what_a_concat_joins_shares_one_quantizer():
    found = quantized_places(
        Network(
            lambda self, x: head(
                self, F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)))
            ),
            a=conv(3, 4),
            b=conv(3, 2),
            c=conv(6, 6),
            fc=nn.Linear(384, 5),
        )
    )
    assert list(found) == ["x", "relu", "relu_1", "relu_2"]
    assert found["relu"] == found["relu_1"]
    assert len({found["x"], found["relu"], found["relu_2"]}) == 3


def test_who_asks_for_a_shape_reads_no_values():
    def forward(self, x):
        y = self.norm(self.first(torch.flatten(x, 2)))
        return self.second(y).reshape(y.shape[0], -1)

    parts = {"first": nn.Linear(64, 8), "norm": nn.LayerNorm(8), "second": nn.Linear(8, 5)}
    prepared = qdeploy.prepare(Network(forward, **parts), images(2), "lsq")
    assert not [name for name, _ in prepared.named_modules() if name.endswith("_narrow")]


def test_a_parameter_that_is_moved_and_added_stays_a_float():
    network = Network(
        lambda self, x: self.last(self.first(x) + torch.flip(self.shift, (0,)).t()).mean((2, 3)),
        first=conv(3, 4), last=conv(4, 5),
    )  # fmt: skip
    network.shift = nn.Parameter(torch.randn(8, 8))
    network.first.padding = (1, 1)
    with torch.no_grad():
        wanted = network.eval()(images(4))
        prepared = qdeploy.prepare(network, images(2), "simqat")
        qdeploy.calibrate(prepared, [images(4)])
        found = prepared.eval()(images(4))
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


SOFTMAXES = {
    "nn.Softmax": lambda self, x: self.softmax(x),
    "torch.softmax": lambda self, x: torch.softmax(x, -1),
    "F.softmax": lambda self, x: F.softmax(x, dim=-1),
    "method": lambda self, x: x.softmax(dim=-1),
}


@pytest.mark.parametrize("softmax", SOFTMAXES.values(), ids=SOFTMAXES)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_scores_reach_their_softmax_in_float(softmax, scale):
    def forward(self, x):
        q, k = torch.flatten(self.conv(x), 2), torch.flatten(self.norm(self.conv2(x)), 2)
        scores = torch.matmul(q, torch.transpose(k, 1, 2))
        weights = softmax(self, scores if scale is None else scores * scale)
        return head(self, torch.matmul(weights, q))

    parts = {"conv": conv(), "conv2": conv(), "norm": nn.BatchNorm2d(6), "fc": nn.Linear(384, 5)}
    found = places(forward, softmax=nn.Softmax(-1), **parts)
    assert found == ["x", "conv", "conv2", "softmax", "matmul_1"]


def test_a_chain_of_concats_shares_one_quantizer_from_end_to_end():
    found = quantized_places(build("branches"))
    stem, grow1, grow2 = (found[name] for name in ("stem_2", "grow1_2", "grow2_2"))
    assert stem == grow1 == grow2
    assert found["narrow_2"] != stem
    assert len(found) == 5


def test_a_relu_moves_before_the_pooling_it_stands_behind():
    network = Network(
        lambda self, x: head(self, F.relu(F.max_pool2d(self.a(x), 2))),
        a=conv(),
        fc=nn.Linear(96, 5),
    )
    prepared = qdeploy.prepare(network, images(2), "simqat", 8, "float")
    order = [node.name for node in graph_module(prepared).graph.nodes]
    assert order.index("relu") < order.index("max_pool2d")
    with torch.no_grad():
        network.a.weight.copy_(prepared.a.quantizer.eval()())
        network.fc.weight.copy_(prepared.fc.quantizer.eval()())
        torch.testing.assert_close(prepared(images()), network(images()))


CLAMPED = {
    "padding": lambda self, x: self.last(F.hardtanh(self.pad(self.conv(x)), 0.5, 2.0)),
    "dropout": lambda self, x: self.last(F.relu6(self.drop(6 * self.conv(x)))),
}


@pytest.mark.parametrize("function", CLAMPED.values(), ids=CLAMPED)
def test_a_clamp_stays_behind_what_puts_zeros_in(function):
    network = Network(
        function, conv=conv(), pad=nn.ZeroPad2d(1), drop=nn.Dropout(0.5), last=nn.Conv2d(6, 4, 3)
    )
    prepared = qdeploy.prepare(network, images(2), "simqat", 8, "float", {"*": "float"})
    for training in (False, True):
        torch.manual_seed(1)
        wanted = network.train(training)(images(2))
        torch.manual_seed(1)
        found = prepared.train(training)(images(2))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_in_place_relu_does_not_move_to_where_others_would_see_it():
    network = Network(
        lambda self, x: head(self, F.relu(F.max_pool2d(y := self.a(x), 1), inplace=True) + y),
        a=conv(),
        fc=nn.Linear(384, 5),
    ).eval()
    prepared = qdeploy.prepare(network, images(2), "simqat", 8, "float")
    with torch.no_grad():
        network.a.weight.copy_(prepared.a.quantizer.eval()())
        network.fc.weight.copy_(prepared.fc.quantizer.eval()())
        torch.testing.assert_close(prepared(images()), network(images()))


def test_a_value_of_several_readers_is_quantized_before_its_relu_too():
    found = places(
        lambda self, x: head(self, F.relu(y := self.a(x)) + self.b(y)),
        a=conv(),
        b=conv(6, 6),
        fc=nn.Linear(384, 5),
    )
    assert found == ["x", "a", "relu", "b", "add"]


def test_only_float_layers_read_it_so_it_stays_float():
    network = nn.Sequential(
        conv(), nn.ReLU(), conv(6, 6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)
    )
    found = quantized_places(network, layers={"2": "float"})
    assert list(found) == ["input_1", "_3"]
    assert list(quantized_places(network, first_last_float=True)) == ["_1"]


def test_a_float_layer_is_quantized_behind_its_batch_norm():
    network = nn.Sequential(
        *conv_norm_relu(3, 6),
        conv(6, 6, bias=False),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 6),
    )
    assert list(quantized_places(network, layers={"3": "float"})) == ["input_1", "_4", "_7", "_8"]


def test_float_activations_place_nothing():
    assert quantized_places(build("residual"), act_bits="float") == {}
    assert quantized_places(build("residual"), act_bits=None) == {}


def activation_bits(prepared):
    return {name: q.bits for name, q in activations(prepared).items()}


def test_the_image_keeps_eight_bits_and_adds_do_too():
    bits = activation_bits(qdeploy.prepare(build("residual"), images(2), "simqat", 8, 3))
    assert bits["x"] == 8
    assert bits["conv2"] == bits["projection"] == 8  # read by an Add alone
    assert bits["stem_2"] == bits["relu"] == 3  # read by layers alone


def test_what_layers_and_an_add_read_has_eight_bits_and_is_requantized_for_the_layers():
    prepared = qdeploy.prepare(build("residual"), images(2), "simqat", 8, 3)
    wide, narrow = prepared.relu_1_activation, prepared.relu_1_activation_narrow
    assert (wide.bits, narrow.bits) == (8, 3)
    readers = {
        node.name: [source.name for source in node.all_input_nodes]
        for node in graph_module(prepared).graph.nodes
    }
    assert readers["same_0"] == ["relu_1_activation_narrow"]
    assert readers["add_1"] == ["relu_1_activation", "same_0_activation"]
    assert readers["relu_1_activation_narrow"] == ["relu_1_activation"]


def test_at_eight_bits_one_quantizer_serves_layers_and_adds():
    prepared = qdeploy.prepare(build("residual"), images(2), "simqat", 4, 8)
    assert not [name for name, _ in prepared.named_modules() if name.endswith("narrow")]


def test_layers_for_which_a_tensor_is_requantized_share_its_quantizer():
    network = Network(
        lambda self, x: head(self, (y := F.relu(self.a(x))) + self.b(y) + self.c(y)),
        a=conv(),
        b=conv(6, 6),
        c=conv(6, 6),
        fc=nn.Linear(384, 5),
    )
    prepared = qdeploy.prepare(network, images(2), "simqat", 8, 2)
    targets = [str(node.target) for node in graph_module(prepared).graph.nodes]
    assert targets.count("relu_activation_narrow") == 1


NONNEGATIVE = {
    "relu": (lambda self, x: F.relu(self.conv(x)), True),
    "relu6": (lambda self, x: nn.functional.relu6(self.conv(x)), True),
    "sigmoid": (lambda self, x: torch.sigmoid(self.conv(x)), True),
    "pooled relu": (lambda self, x: F.avg_pool2d(F.max_pool2d(F.relu(self.conv(x)), 2), 2), True),
    "sum of relus": (lambda self, x: F.relu(y := self.conv(x)) + torch.sigmoid(y), True),
    "relu plus a number": (lambda self, x: F.relu(self.conv(x)) + (-1.0), False),
    "difference of relus": (
        lambda self, x: torch.add(F.relu(y := self.conv(x)), F.relu(-y), alpha=-1),
        False,
    ),
    "sum by keyword": (lambda self, x: torch.add(F.relu(y := self.conv(x)), other=y), False),
    "in place by keyword": (lambda self, x: F.relu(y := self.conv(x)).add_(other=y), False),
    "relus by keyword": (
        lambda self, x: torch.add(F.relu(y := self.conv(x)), other=F.relu(-y)),
        True,
    ),
    "bare": (lambda self, x: self.conv(x), False),
    "hardtanh": (lambda self, x: F.hardtanh(self.conv(x)), False),
    "normalized relu": (lambda self, x: self.norm(F.relu(self.conv(x))), False),
    "relu padded by 0": (lambda self, x: F.pad(F.relu(self.conv(x)), (1, 1, 1, 1)), True),
    "relu padded by -1": (
        lambda self, x: F.pad(F.relu(self.conv(x)), (1, 1, 1, 1), value=-1.0),
        False,
    ),
    "bilinear": (
        lambda self, x: F.interpolate(F.relu(self.conv(x)), scale_factor=2, mode="bilinear"),
        True,
    ),
    "bicubic": (
        lambda self, x: F.interpolate(F.relu(self.conv(x)), scale_factor=2, mode="bicubic"),
        False,
    ),
    "gated in place": (lambda self, x: F.relu(y := self.conv(x)).mul_(torch.sigmoid(y)), True),
    "gated by torch.multiply": (
        lambda self, x: torch.multiply(F.relu(y := self.conv(x)), torch.sigmoid(y)),
        True,
    ),
    "square of a relu": (lambda self, x: (y := F.relu(self.conv(x))) * y, True),
    "multiple of a relu": (lambda self, x: F.relu(self.conv(x)) * -2, False),
    "clamp from 0": (lambda self, x: self.conv(x).clamp(0, 4), True),
    "clamp to a tensor": (lambda self, x: (y := self.conv(x)).clamp(max=y.abs()), False),
    "relu and bare": (lambda self, x: torch.cat([F.relu(y := self.conv(x)), y], 1), False),
}


@pytest.mark.parametrize(("function", "expected"), NONNEGATIVE.values(), ids=NONNEGATIVE)
def test_methods_are_told_what_has_no_negative_values(function, expected, monkeypatch):
    told = []

    def activation(site, bits, options):
        told.append(site.nonnegative)
        return MovingRange(bits)

    method = dataclasses.replace(methods.find("simqat"), activation=activation, carrier=carrier)
    monkeypatch.setattr(methods, "find", lambda name: method)
    network = Network(
        lambda self, x: self.last(function(self, x)).mean((2, 3)),
        conv=conv(),
        norm=nn.BatchNorm2d(6),
        last=nn.LazyConv2d(4, 1),
    )
    network(images(2))
    qdeploy.prepare(network, images(2), "simqat", 8, 4)
    # The last layer's input comes last; everything else is carried or read by no layer.
    assert told[-1] == expected


def carrier(bits, options):
    return MovingRange(bits)


@pytest.mark.parametrize("name", ["relu padded by -1", "bicubic"])
@pytest.mark.parametrize("method", ["pact", "lsq", "dorefa"])
def test_negative_values_behind_a_relu_reach_the_layer(method, name):
    torch.manual_seed(0)
    network = Network(
        lambda self, x: self.last(NONNEGATIVE[name][0](self, 3 * x)).mean((2, 3)),
        conv=conv(), last=conv(6, 4),
    )  # fmt: skip
    prepared = qdeploy.prepare(network, images(2), method, 4, 4)
    qdeploy.calibrate(prepared, [images(8)])
    read = []
    prepared.last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        prepared.eval()(images(8))
    assert read[0].min() < 0


def test_a_tensor_has_the_bits_of_the_reader_that_wants_most():
    network = Network(
        lambda self, x: head(self, self.b(y := F.relu(self.a(x))) + self.c(y)),
        a=conv(),
        b=conv(6, 6),
        c=conv(6, 6),
        fc=nn.Linear(384, 5),
    )
    layers = {"b": {"act_bits": 3}, "c": {"act_bits": 5}}
    prepared = qdeploy.prepare(network, images(2), "simqat", 8, 2, layers)
    assert prepared.relu_activation.bits == 5


@pytest.mark.parametrize("name", NETWORKS)
def test_no_value_passes_two_quantizers_in_a_row(name):
    found = quantized_places(build(name))
    assert not [maker for maker in found if "activation" in maker]


@pytest.mark.parametrize("rectified", [False, True])
def test_a_border_of_minus_infinity_in_front_of_a_maximum_is_no_value(rectified):
    """As timm pads for MaxPool2d(padding="same")."""

    def forward(self, x):
        y = self.first(x).relu() if rectified else self.first(x)
        return self.last(F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=-torch.inf), 3, 2))

    torch.manual_seed(0)
    network = Network(forward, first=conv(3, 6), last=conv(6, 4))
    prepared = qdeploy.prepare(network, images(4), "simqat")
    qdeploy.calibrate(prepared, [images()])
    found, expected = qdeploy.convert(prepared)(images()), network.eval()(images())
    assert (found - expected).norm() < 0.03 * expected.norm()
