"""A network that writes in place, prepared, computes what it computed."""

import inspect
import operator

import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv, images
from torch import nn

from qdeploy.errors import QdeployError
from qdeploy.preparation.in_place import AUGMENTED, Memory
from qdeploy.preparation.trace import trace
from qdeploy.preparation.vocabulary import OPERATORS, operator_of

SIX = torch.linspace(-1, 2, 6).reshape(6, 1, 1)


def between(self, y):
    before = self.other(y)
    y.relu_()
    return before, y


def two_names(self, y):
    z = y
    y += 1
    return z


def nothing_is_returned(self, y):
    self.relu(y)
    return self.other(y)


def twice(self, y):
    z = F.leaky_relu(y, 0.1, True)
    y.add_(1).mul_(SIX)
    return y, z


def a_module_used_again(self, y):
    z = self.relu(y)
    return self.relu(z - 1) + y


def through_a_view(self, y):
    y.view(y.size(0), -1).relu_()
    return self.other(y)


def into_channels(self, y):
    y[:, 1:3].mul_(2)
    return self.other(y), y.permute(0, 2, 3, 1)


def into_a_part(self, y):
    first, second = y.chunk(2, 1)
    first.relu_()
    return torch.cat([first, second], 1), second


def into_a_part_of_a_part(self, y):
    rows = y.transpose(2, 3)[:, ::2]
    rows[..., 0].clamp_(min=0)
    z = rows.relu_()
    y.sub_(1)
    return y, rows, z


def items(self, y):
    shifted = torch.zeros_like(y)
    shifted[:, :2, 1:] = y[:, :2, :-1]
    shifted[:, 2:] = y[:, 2:]
    y[:, 0] = 1.5
    return self.other(shifted), y


def masked(self, y):
    y[y < 0] = 0.25
    return self.other(y)


def other_writers(self, y):
    a, b, c = y.clone(), y.clone(), y.clone()
    a.copy_(SIX)
    b.fill_(2.0)
    c.zero_()
    return torch.cat([a, b, c], 1)


def named_output(self, y):
    buffer = torch.empty_like(y)
    torch.multiply(y, SIX, out=buffer)
    return self.other(buffer)


def a_layout(self, y):
    z = torch.zeros_like(y)
    z.copy_(y.transpose(2, 3))
    return z.view(z.size(0), -1)


def numbers(self, y):
    count = y.size(0)
    double = count
    double *= 2
    return y.reshape(double, -1).sum(1)[:count]


FORWARDS = [
    between, two_names, nothing_is_returned, twice, a_module_used_again, through_a_view, into_channels,
    into_a_part, into_a_part_of_a_part, items, masked, other_writers, named_output, a_layout, numbers,
]  # fmt: skip


def network_of(forward, **parts):
    relu = nn.ReLU(inplace=True)
    body = Network(forward, other=conv(6), relu=relu, **parts)
    return nn.Sequential(conv(), body).eval()


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
def test_all_that_reads_what_was_written_reads_it(forward):
    torch.manual_seed(0)
    network = network_of(forward)
    written = trace(network, images(2))
    with torch.no_grad():
        for x in (images(2), images(5, seed=3)):
            torch.testing.assert_close(written(x), network(x), rtol=0, atol=0)
    assert not writers(written)


def writers(network):
    memory = Memory(network)
    memory.run(images(2))
    return memory.written


def test_gradients_pass_what_was_written_through_views():
    network = network_of(into_channels)
    written = trace(network, images(2))
    for model in (network, written):
        sum(part.square().sum() for part in model(images())).backward()
    gradients = [[p.grad for p in model.parameters()] for model in (network, written)]
    torch.testing.assert_close(*gradients)


def test_the_images_that_are_given_stay_what_they_are():
    network = Network(lambda self, x: self.conv(x.sub_(0.5).div_(2)), conv=conv()).eval()
    x = images(2)
    written = trace(network, x)
    assert torch.equal(x, images(2))
    torch.testing.assert_close(written(x), network(images(2)), rtol=0, atol=0)


class Clips(nn.Module):
    def forward(self, x):
        return F.relu_(x)


def test_a_module_kept_whole_that_writes_to_what_is_read_again_is_named():
    network = nn.Sequential(conv(), Network(lambda self, y: self.clips(y) + y, clips=Clips()))
    with pytest.raises(QdeployError, match=r"1\.clips .* writes in place to a tensor that is read"):
        trace(network, images(2), ["1.clips"])
    trace(nn.Sequential(conv(), Clips()), images(2), ["1"])


def test_a_module_that_gives_back_what_it_wrote_to_is_no_identity():
    network = nn.Sequential(conv(), Clips()).eval()
    assert torch.equal(trace(network, images(2))(images()), network(images()))


def spellings():
    """Each operator of the vocabulary in each way in which PyTorch writes it in place."""
    for row in OPERATORS:
        for spelling in row.spellings:
            yield from ((row, twin) for twin in in_place(spelling))


def in_place(spelling):
    name = spelling if isinstance(spelling, str) else spelling.__name__
    if isinstance(spelling, str):
        if hasattr(torch.Tensor, f"{name}_"):
            yield lambda x, *args: getattr(x, f"{name}_")(*args)
    elif getattr(operator, f"i{name}", None) in AUGMENTED:
        yield getattr(operator, f"i{name}")
    elif isinstance(spelling, type):
        if "inplace" in inspect.signature(spelling).parameters:
            yield spelling(inplace=True).eval()
    elif inspect.isfunction(spelling) and "inplace" in inspect.signature(spelling).parameters:
        yield lambda x, *args: spelling(x, *args, inplace=True)
    else:
        yield from (getattr(m, f"{name}_") for m in (F, torch) if hasattr(m, f"{name}_"))


ARGUMENTS = {
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), (1.5,)),
    "power": (2,), "clamp": (-0.5, 0.5), "clamp_min": (0.1,), "clamp_max": (0.1,),
    "transpose": (1, 2), "squeeze": (1,), "unsqueeze": (1,),
    "dropout": (0.5, False), "dropout1d": (0.5, False), "dropout2d": (0.5, False), "dropout3d": (0.5, False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "function"), [pytest.param(*pair, id=pair[0].name) for pair in spellings()]
)
def test_every_spelling_in_place_is_known_as_its_operator(row, function):
    def forward(self, y):
        y = y.flatten(2) * 1.0 if row.name == "dropout1d" else y * 1.0
        z = self.write(y) if isinstance(function, nn.Module) else self.write(y, *arguments)
        return z, y

    arguments = ARGUMENTS.get(row.name, ())
    network = Network(forward, write=function).eval()
    written = trace(network, images(2))
    node = written.graph.output_node().all_input_nodes[0]
    assert operator_of(node, written) is row
    assert not writers(written)
    x = images(2)
    for found, expected in zip(written(x), network(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
