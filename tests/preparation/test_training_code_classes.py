"""Networks of unusual classes, and unusual calls of prepared ones."""

import pytest
import torch
import torch.nn.utils.prune
from backbone_networks import METHODS, Net, net, prepared_of, train
from networks import awkward_norms, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange


class Closed(Net):
    """Takes no new attributes."""

    def __setattr__(self, name, value):
        if vars(self).get("closed") and name != "training":
            raise AttributeError(name)
        super().__setattr__(name, value)


class Registered(Net):
    """Wants a key of each subclass."""

    subclasses = ()

    def __init_subclass__(cls, *, key, **more):
        super().__init_subclass__(**more)
        Registered.subclasses += (cls,)


class Renamed(Net):
    """Its state has other names."""

    def state_dict(self, *args, **options):
        return {f"my.{name}": x for name, x in super().state_dict(*args, **options).items()}

    def load_state_dict(self, state, strict=True):
        return super().load_state_dict({n.removeprefix("my."): x for n, x in state.items()}, strict)


@pytest.mark.parametrize("kind", [Closed, Registered, Renamed])
def test_a_class_of_the_users_may_do_things_its_own_way(kind):
    torch.manual_seed(0)
    network, other = awkward_norms(kind()), awkward_norms(kind(), 1)
    network.closed = True
    prepared = prepared_of(network)
    train(prepared.train())
    prepared.load_state_dict(prepared.state_dict())
    with pytest.warns(UserWarning, match="starts anew"):
        prepared.load_state_dict(other.state_dict())
    assert torch.equal(prepared.head.weight, other.head.weight)
    with torch.no_grad():
        wanted = prepared.eval()(images())
        torch.testing.assert_close(qdeploy.convert(prepared)(images()), wanted, rtol=0, atol=0.02)
    assert not Registered.subclasses


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(6, 4)

    def forward(self, a, b, scale=2.0):
        return self.first(a) * scale + self.second(b)


@pytest.mark.parametrize(
    ("given", "said"),
    [("a", "a"), ("", "nothing"), ("abb", "a, b, 1 more"), ("aba", "a, b, 1 more")],
)
def test_more_or_fewer_inputs_are_refused_with_their_names(given, said):
    inputs = {"a": torch.ones(2, 5), "b": torch.ones(2, 6)}
    prepared = qdeploy.prepare(Two(), tuple(inputs.values()), "simqat")
    with pytest.raises(QdeployError, match=f"prepared for a, b and is given {said};"):
        prepared(*(inputs[name] for name in given))


def test_a_slice_of_a_sequential_freezes_its_part_and_does_not_run():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    prepared = qdeploy.prepare(network, images(2), "lsq", 4, 4)
    qdeploy.calibrate(prepared, [images()])
    part = prepared[:2].eval().requires_grad_(False)
    assert not any(p.requires_grad for p in prepared[0].parameters())
    assert not prepared[1].training
    assert prepared[3].weight.requires_grad
    with pytest.raises(QdeployError, match="only the whole prepared network runs"):
        part(images())


@pytest.mark.parametrize(
    "kind", [nn.ModuleList, lambda parts: nn.ModuleDict(dict(zip("ab", parts, strict=True)))]
)
def test_a_list_of_modules_keeps_its_parts(kind):
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = kind([nn.Linear(5, 5), nn.Linear(5, 5)])

        def forward(self, x):
            for part in self.stack.children():
                x = part(x)
            return x

    prepared = qdeploy.prepare(Stacked(), torch.ones(2, 5), "simqat")
    prepared.train().stack.add_module("2", nn.Linear(5, 5))
    with pytest.raises(QdeployError, match=r"stack was prepared with ., . and has ., ., 2"):
        prepared.train()


def test_a_layer_that_is_compiled_by_itself_ships():
    prepared = prepared_of()
    qdeploy.calibrate(prepared, [images()])
    wanted = qdeploy.convert(prepared)
    prepared.head = torch.compile(prepared.head, backend="eager")
    found = qdeploy.convert(prepared.train())
    assert type(found.get_submodule("head")) is type(wanted.get_submodule("head"))
    assert torch.equal(found(images()), wanted(images()))
    assert isinstance(prepared.head, torch._dynamo.OptimizedModule)


def test_of_features_the_network_is_converted():
    prepared = prepared_of()
    qdeploy.calibrate(prepared, [images()])
    found = qdeploy.convert(qdeploy.features(prepared, ["backbone"]))
    assert torch.equal(found(images()), qdeploy.convert(prepared)(images()))


@pytest.mark.parametrize(("method", "bits", "acts"), METHODS)
def test_a_weight_that_was_frozen_before_ships_as_it_was(method, bits, acts):
    network = net()
    network.backbone.stem.requires_grad_(False)
    prepared = prepared_of(network, method, bits, acts)
    before, _ = prepared.backbone.stem.integers()
    train(prepared.train(), 3)
    after, _ = prepared.backbone.stem.integers()
    assert torch.equal(before.dequantize(), after.dequantize())


def test_nothing_traces_a_module_with_a_prepared_network_inside():
    with pytest.raises(QdeployError, match="a graph already"):
        torch.fx.symbolic_trace(nn.Sequential(prepared_of()))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_transforms_of_torch_func_are_refused(transform):
    prepared = prepared_of()
    qdeploy.calibrate(prepared, [images()])

    def loss(weights):
        return torch.func.functional_call(prepared.eval(), weights, (images(),)).sum()

    with pytest.raises(QdeployError, match="cannot pass through what rounds"):
        transform(loss)(dict(prepared.named_parameters()))


def test_weights_that_a_parametrization_computes_ship():
    prepared = prepared_of()
    nn.utils.parametrizations.weight_norm(prepared.head)
    train(prepared.train())
    with torch.no_grad():
        wanted = prepared.eval()(images())
        torch.testing.assert_close(qdeploy.convert(prepared)(images()), wanted, rtol=0, atol=0.02)


def test_pruned_weights_ship_when_the_pruning_is_permanent():
    prepared = prepared_of()
    torch.nn.utils.prune.l1_unstructured(prepared.head, "weight", 0.5)
    train(prepared.train())
    with pytest.raises(QdeployError, match=r"a hook computes the weight of head\. .*prune\.remove"):
        qdeploy.convert(prepared)
    torch.nn.utils.prune.remove(prepared.head, "weight")
    assert (qdeploy.convert(prepared).get_submodule("head").codes == 0).float().mean() >= 0.5


@pytest.mark.parametrize(("method", "bits"), [("simqat", 8), ("lsq", 4), ("pact", 4)])
def test_a_copy_that_is_written_as_data_rounds_like_its_source(method, bits):
    """As many averages of weights copy buffers; the copy was evaluated before there were ranges."""
    prepared = prepared_of(net(), method, bits, bits)
    copied = prepared_of(net(), method, bits, bits).eval()
    with pytest.warns(UserWarning, match="before its activation quantizers have seen data"):
        copied(images())
    train(prepared.train())
    for name, tensor in copied.state_dict().items():
        tensor.data.copy_(prepared.state_dict()[name])
    with torch.no_grad():
        assert torch.equal(copied.train().eval()(images()), prepared.eval()(images()))


def test_a_range_that_is_forgotten_as_data_is_asked_for_anew():
    quantizer = MovingRange(8)
    quantizer(torch.ones(3))
    assert quantizer.eval().has_range
    quantizer.average.data.zero_()
    assert not quantizer.train().eval().has_range
