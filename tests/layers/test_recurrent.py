"""Recurrent layers as the matrices that they multiply by, against torch's own layers."""

import copy

import pytest
import torch
from sequence_networks import KINDS, SHAPES, Keywords, recurrent, sequences

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.recurrent import DIRECTIONS, Recurrent, tensor_name
from qdeploy.layers.transparent import transparent

every_layer = pytest.mark.parametrize(
    "layer",
    [recurrent(kind, shape) for kind in KINDS for shape in SHAPES],
    ids=[f"{kind}, {shape}" for kind in KINDS for shape in SHAPES],
)


def equal(found, wanted):
    for ours, theirs in zip(flat(found), flat(wanted), strict=True):
        assert torch.equal(ours, theirs)


def flat(output):
    return [output] if isinstance(output, torch.Tensor) else [t for x in output for t in flat(x)]


def states_of(layer, count=4):
    shape = layer.num_layers * (1 + layer.bidirectional), count, layer.hidden_size
    states = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    return tuple(states) if layer.mode == "LSTM" else states[0]


@every_layer
def test_open_it_is_torchs_layer(layer):
    x = sequences() if layer.batch_first else sequences().transpose(0, 1)
    opened = Recurrent(layer)
    equal(opened(x), layer(x))
    equal(opened(x, states_of(layer)), layer(x, states_of(layer)))
    one = x[0] if layer.batch_first else x[:, 0]
    equal(opened(one), layer(one))


def test_dropout_between_layers_draws_what_torchs_layer_draws():
    layer = recurrent("GRU", num_layers=3, dropout=0.4).train()
    opened = Recurrent(layer)
    results = []
    for module in (layer, opened):
        torch.manual_seed(5)
        results.append(module(sequences()))
    equal(*results)
    assert not torch.equal(results[0][0], layer.eval()(sequences())[0])


def test_sizes_that_do_not_fit_are_refused():
    opened = Recurrent(recurrent())
    with pytest.raises(QdeployError, match=r"takes \[sequences, steps, 6\].* given \[4, 7, 5\]"):
        opened(sequences()[..., :5])
    h, c = states_of(opened, 3)
    with pytest.raises(QdeployError, match=r"states \[1, 4, 5\].* given \[4, 7, 6\], \[1, 3, 5\]"):
        opened(sequences(), (h, c))


def with_weights_that_ship(network, prepared):
    """The float network with what each quantized matrix of `rnn` stands for in the place of its own."""
    network = copy.deepcopy(network).eval()
    for number in range(network.rnn.num_layers):
        for way in DIRECTIONS[: 1 + network.rnn.bidirectional]:
            for matrix in ("ih", "hh"):
                name = f"{matrix}{way}"
                part = prepared.rnn.get_submodule(f"l{number}.{name}")
                weight = getattr(network.rnn, f"weight_{tensor_name(name, number)}")
                weight.data = part.quantizer.collapse(part.weight).dequantize()
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_and_converted_are_torchs_layer_with_rounded_weights(kind):
    network = Keywords(recurrent(kind, "two layers, both ways"))
    prepared = qdeploy.prepare(network, sequences(), "simqat", 4, layers={"fc": "float"}).eval()
    names = [f"rnn.{place}" for place, _ in Recurrent(network.rnn).parts()]
    assert names[:3] == ["rnn.l0.ih", "rnn.l0.hh", "rnn.l0.ih_reverse"]
    assert list(prepared.settings) == [*names, "fc"]
    wanted = with_weights_that_ship(network, prepared)
    x = sequences(9, 2)
    torch.testing.assert_close(prepared(x), wanted(x))
    torch.testing.assert_close(qdeploy.convert(prepared)(x), wanted(x))
    assert (wanted(x) - network.eval()(x)).abs().max() > 1e-3


def test_each_matrix_trains_straight_through_its_rounding():
    network = Keywords()
    prepared = qdeploy.prepare(
        network, sequences(), "simqat", 4, layers={"fc": "float"}, weight_narrow_range=True
    )
    wanted = with_weights_that_ship(network, prepared.eval()).train()
    for trained in (prepared.train(), wanted):
        trained(sequences()).square().sum().backward()
    for name in ("ih", "hh"):
        part = prepared.rnn.get_submodule(f"l0.{name}")
        for ours, theirs in ((part.weight, "weight"), (part.bias, "bias")):
            expected = getattr(wanted.rnn, f"{theirs}_{name}_l0").grad
            assert expected.abs().max() > 0
            torch.testing.assert_close(ours.grad, expected)


def test_settings_are_those_of_any_layer():
    layers = {
        "*.hh": {"method": "slb", "weight_bits": 2},
        "rnn.l1.*": "float",
        "fc": {"act_bits": 4},
    }
    network = Keywords(recurrent(num_layers=2))
    prepared = qdeploy.prepare(network, sequences(), "simqat", 5, layers=layers)
    bits = {
        n: s and (s.method_name, s.weight_bits, s.act_bits) for n, s in prepared.settings.items()
    }
    assert bits == {
        "rnn.l0.ih": ("simqat", 5, None),
        "rnn.l0.hh": ("slb", 2, None),
        "rnn.l1.ih": None,
        "rnn.l1.hh": None,
        "fc": ("simqat", 5, 4),
    }
    assert prepared.searching
    prepared.rnn.flatten_parameters()


def test_the_state_of_the_float_network_loads():
    network, other = Keywords(), Keywords(recurrent(num_layers=1))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    prepared = qdeploy.prepare(network, sequences(), "simqat").eval()
    prepared.load_state_dict(other.state_dict())
    with transparent(prepared):
        torch.testing.assert_close(prepared(sequences()), other(sequences()))
    prepared.rnn.load_state_dict(network.rnn.state_dict())
    with transparent(prepared):
        assert not torch.allclose(prepared(sequences()), other(sequences()))
