"""Tracing: what cannot be traced is named, and what tracing would freeze is kept alive."""

import copy
import re
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.preparation.trace import trace


def linear(features=192):
    return nn.Linear(features, 5)


def branching(self, x):
    if x.sum() > 0:  # this line
        x = -x
    return self.conv(x)


def looping(self, x):
    for row in x:  # this line as well
        x = x + row
    return self.conv(x)


@pytest.mark.parametrize(
    ("function", "line"), [(branching, "if x.sum() > 0"), (looping, "for row in x")]
)
def test_control_flow_on_values_is_named_with_file_and_line(function, line):
    number = 1 + next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines()) if line in text
    )
    with pytest.raises(QdeployError) as caught:
        trace(Network(function, conv=conv()), images(2))
    message = str(caught.value)
    assert f"{__file__}, line {number}: {line}" in message
    assert "torch.fx cannot trace Network" in message
    assert "Ways out: " in message
    assert "torch.fx.wrap" in message


def test_a_user_file_below_a_folder_named_torch_is_still_named(tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    file = folder / "network.py"
    file.write_text("def forward(self, x):\n    return self.conv(x) if x.max() > 0 else x\n")
    scope = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    with pytest.raises(QdeployError, match=re.escape(f"{file}, line 2")):
        trace(Network(scope["forward"], conv=conv()), images(2))


def test_wrong_input_shape_says_which():
    network = nn.Sequential(conv(inputs=4))
    with pytest.raises(QdeployError, match=r"cannot take an input of shape \[2, 3, 8, 8\]"):
        trace(network, images(2))


def test_a_network_of_two_inputs_is_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(QdeployError, match=r"Two cannot take an input .*missing 1 required"):
        trace(Two(), images(2))


DROPS = {
    "frozen argument": lambda self, x: F.dropout(x, 0.4, self.training),
    "keyword": lambda self, x: F.dropout(x, p=0.4, training=self.training),
    "input by keyword": lambda self, x: F.dropout(input=x, p=0.4, training=self.training),
    "channels": lambda self, x: F.dropout2d(x, 0.4, self.training),
    "torch": lambda self, x: torch.dropout(x, 0.4, self.training),
}


@pytest.mark.parametrize("function", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("training", [True, False])
def test_functional_dropout_follows_the_mode(function, training):
    ones = torch.ones(40, 30, 8, 8)
    network = trace(Network(function).train(training), ones)
    assert network.training == training
    torch.manual_seed(0)
    kept = network.train()(ones)
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 1 / 0.6])
    assert (kept == 0).float().mean().item() == pytest.approx(0.4, abs=0.05)
    assert torch.equal(network.eval()(ones), ones)


def test_functional_dropout_takes_no_name_of_the_user():
    network = Network(
        lambda self, x: self.dropout(F.dropout(x, 0.5, self.training)), dropout=nn.Dropout(0.1)
    )
    rates = [m.p for m in trace(network, images(2)).modules() if isinstance(m, nn.Dropout)]
    assert sorted(rates) == [0.1, 0.5]


def test_tracing_leaves_the_model_alone():
    model = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Dropout()).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    traced = trace(model, images(4))
    assert [m.training for m in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert traced.get_submodule("0") is not model[0]


def test_every_node_knows_its_shape():
    network = trace(nn.Sequential(conv(stride=2), nn.Flatten()), images(3))
    shapes = [tuple(node.meta["tensor_meta"].shape) for node in network.graph.nodes][:3]
    assert shapes == [(3, 3, 8, 8), (3, 6, 4, 4), (3, 96)]


def test_constants_made_in_forward_are_the_same_in_both_modes():
    def normalized(self, x):
        return self.conv((x - torch.tensor(0.5)) / torch.full((3, 1, 1), 2.0))

    network = Network(normalized, conv=conv())
    traced = trace(network, images(2))
    torch.testing.assert_close(traced(images()), network(images()))


class Optional(nn.Module):
    """Takes more than it is given, and minds its own type; if `sized`, the size of its input too."""

    def __init__(self, sized):
        super().__init__()
        self.sized = sized

    def forward(self, x, mask=None, *, scale=2.0, **more):
        assert type(self) is Optional
        assert not self.sized or x.shape[2] == 8
        return x * scale if mask is None and not more else x * mask


@pytest.mark.parametrize("sized", [False, True])
def test_arguments_that_are_not_given_keep_their_defaults(sized):
    before = nn.Module.__call__, nn.Module.__getattr__
    traced = trace(Optional(sized), images(2))
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
    assert [n.name for n in traced.graph.nodes if n.op == "placeholder"] == ["x"]
    assert torch.equal(traced(images()), 2 * images())


def test_several_inputs_are_a_tuple():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + 2 * y

    traced = trace(Two(), (images(2), images(2)))
    assert torch.equal(traced(images(), images()), 3 * images())


def prepared_in_float(network, example):
    """What prepare makes of a network, without any rounding."""
    return qdeploy.prepare(network, example, "simqat", layers={"*": "float"}, act_bits="float")


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None


class Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)


@pytest.mark.parametrize(
    "function", [lambda x: Reversed.apply(x, 0.5), Signs.apply], ids=["reversed", "signs"]
)
@pytest.mark.parametrize("sized", [False, True])
def test_a_function_of_the_users_keeps_its_backward(function, sized):
    def forward(self, x):
        assert not sized or x.shape[2] > 1
        return self.last(function(self.first(x)))

    network = Network(forward, first=conv(), last=conv(6, 4))
    prepared = prepared_in_float(network, images(2))
    for trained in (network, prepared, copy.deepcopy(prepared)):
        trained.train()(images()).square().mean().backward()
    weights = [network.first.weight, prepared.first.weight]
    torch.testing.assert_close(weights[1].grad, weights[0].grad)
    assert weights[0].grad.norm() > 0


def test_a_function_of_the_users_ships_as_its_forward(tmp_path):
    network = Network(
        lambda self, x: self.last(Signs.apply(self.first(x))), first=conv(), last=conv(6, 4)
    )
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images()])
    file = qdeploy.export(prepared, tmp_path / "model.onnx", images(2))
    assert "Sign" in {node.op_type for node in onnx.load(file).graph.node}


def scaled_by_shape(self, x):
    return self.conv(x) * self.conv.weight.shape[1] ** -0.5


def typed_as_weight(self, x):
    return self.conv(x.to(self.conv.weight.dtype).to(device=self.conv.weight.device))


def on_the_cpu(self, x):
    return self.conv(x.cpu().float()).type(torch.float32).type_as(x)


def sized_by_parameter(self, x):
    if self.conv.weight.dim() == 4 and self.conv.weight.size(0) == 6 and len(self.conv.bias) == 6:
        x = self.conv(x)
    return x + self.conv.weight.numel()


@pytest.mark.parametrize(
    "forward", [scaled_by_shape, typed_as_weight, on_the_cpu, sized_by_parameter]
)
def test_what_is_known_of_a_parameter_is_a_number(forward):
    network = Network(forward, conv=conv())
    traced = trace(network, images(2))
    torch.testing.assert_close(traced(images()), network(images()))
    assert "get_attr" not in {node.op for node in traced.graph.nodes}
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images()])
    found, expected = qdeploy.convert(prepared)(images()), network.eval()(images())
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_an_input_may_have_the_name_of_a_method_of_modules():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, half, train, type, input):  # noqa: A002
            return self.conv(half + train * type - input)

    batches = tuple(images(3, seed) for seed in range(4))
    prepared = qdeploy.prepare(Halves(), batches, "simqat")
    qdeploy.calibrate(prepared, [batches])
    placeholders = [n for n in qdeploy.convert(prepared).graph.nodes if n.op == "placeholder"]
    assert [node.target for node in placeholders] == ["half", "train", "type", "input"]


def test_the_indices_of_a_pooling_are_no_values():
    def forward(self, x):
        y, where = self.pool(F.relu(self.first(x)))
        return self.last(self.unpool(self.middle(y), where))

    torch.manual_seed(0)
    network = Network(
        forward, first=conv(3, 6), middle=conv(6, 6), last=conv(6, 4),
        pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2),
    )  # fmt: skip
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images()])
    found, expected = qdeploy.convert(prepared)(images()), network.eval()(images())
    assert (found - expected).norm() < 0.2 * expected.norm()  # codes that tie change the place


def tied(self, x):
    return F.conv_transpose2d(F.relu(self.conv(x)), self.conv.weight, padding=1)


def normalised(self, x):
    return self.conv(x) / self.conv.weight.flatten(1).norm(dim=1).reshape(-1, 1, 1)


def biased(self, x):
    return self.conv(x) + self.conv.bias.reshape(-1, 1, 1)


@pytest.mark.parametrize("forward", [tied, normalised, biased])
def test_parameters_of_a_layer_may_be_read_elsewhere(forward):
    torch.manual_seed(0)
    network = Network(forward, conv=conv())
    prepared = qdeploy.prepare(network, images(2), "simqat")
    prepared.train()(images()).square().mean().backward()
    assert prepared.conv.quantizer.latent.grad.norm() > 0
    qdeploy.calibrate(prepared, [images()])
    found, expected = qdeploy.convert(prepared)(images()), network.eval()(images())
    assert (found - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("drawn", [False, True], ids=["of values", "at random"])
def test_a_decision_on_a_number_taken_out_of_a_tensor_is_named(drawn):
    def forward(self, x):
        assert x.shape[2] > 1
        number = torch.rand(1).item() if drawn else x.abs().max().item()
        return self.conv(x) if number >= 0 else x

    with pytest.raises(QdeployError, match=r"return self.conv\(x\) if number >= 0 else x"):
        trace(Network(forward, conv=conv()), images(2))
