"""Tracing: what cannot be traced is named, and what tracing would freeze is kept alive."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv, images
from torch import nn

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
