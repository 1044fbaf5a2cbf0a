"""Every row of the vocabulary is run in every spelling: what a row says of its operator is so.

A new row or spelling is tested without another line, unless its call needs arguments: see `CALLS`.
"""

import math
import re
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.preparation import vocabulary
from qdeploy.preparation.tracer import TrainingOnly
from qdeploy.preparation.vocabulary import OPERATORS, ROWS, UNKNOWN, Operator, operator_of


@dataclass
class Call:
    """How an operator is called in the tests.

    shape     of what it reads
    args      behind the tensor, of a function or a method
    module    what a module is made with
    several   whether it takes its tensors in a list
    """

    shape: tuple[int, ...] = (2, 4, 8, 8)
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    module: tuple = ()
    several: bool = False


MATRIX = torch.arange(64.0).reshape(8, 8) / 64
SECOND = (torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) + 0.5,)
CALLS = {
    "clamp": Call(args=(-0.4, 0.7)),
    "clamp_min": Call(args=(-0.4,)),
    "clamp_max": Call(args=(0.7,)),
    "softmax": Call(args=(1,)),
    "power": Call(args=(2,)),
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), Call(args=SECOND)),
    "matmul": Call((2, 8, 8), args=(MATRIX.repeat(2, 1, 1),)),
    "avg_pool": Call(args=(2,), module=(2,)),
    "max_pool": Call(args=(2,), module=(2,)),
    "adaptive_avg_pool": Call(args=(3,), module=(3,)),
    "adaptive_max_pool": Call(args=(3,), module=(3,)),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d"), Call(args=(0.5, False), module=(0.5,))
    ),
    "by_mode": Call(args=(torch.zeros(2, 4, 8, 8),)),
    "interpolate": Call(kwargs={"scale_factor": 2}, module=(None, 2)),
    "bilinear": Call(module=(None, 2)),
    "pad": Call(args=((1, 2),), module=(1,)),
    "border": Call(module=(1,)),
    "reshape": Call(args=((2, -1),)),
    "reshape_as": Call(args=(torch.zeros(8, 64),)),
    "unflatten": Call(args=(1, (2, 2)), module=(1, (2, 2))),
    "permute": Call(args=((0, 2, 3, 1),)),
    "transpose": Call(args=(1, 2)),
    "movedim": Call(args=(1, 2)),
    "squeeze": Call((2, 1, 8), args=(1,)),
    "unsqueeze": Call(args=(1,)),
    "expand": Call((2, 1, 8), args=(2, 4, 8)),
    "expand_as": Call((2, 1, 8), args=(torch.zeros(2, 4, 8),)),
    "repeat": Call(args=((1, 1, 2, 2),)),
    "roll": Call(args=(3, 1)),
    "flip": Call(args=((1, 2),)),
    "narrow": Call(args=(1, 1, 2)),
    "chunk": Call(args=(2, 1)),
    "split": Call(args=(2, 1)),
    "getitem": Call(args=((slice(None), 1),)),
    "concat": Call(several=True),
    "pixel_shuffle": Call(args=(2,), module=(2,)),
    "pixel_unshuffle": Call(args=(2,), module=(2,)),
    "channel_shuffle": Call(args=(2,), module=(2,)),
    "linear": Call(args=(MATRIX,)),
    **{f"conv{n}d": Call(args=(torch.ones(2, 4, *[3] * n),)) for n in (1, 2, 3)},
}
# What one spelling is called with and the others of its row are not.
SPELLED = {
    "mm": Call((8, 8), args=(MATRIX,)),
    torch.mm: Call((8, 8), args=(MATRIX,)),
    nn.ConstantPad1d: Call(module=(1, 0.0)),
    nn.ConstantPad2d: Call(module=(1, 0.0)),
    nn.ConstantPad3d: Call(module=(1, 0.0)),
    nn.Softmax: Call(module=(1,)),
    TrainingOnly: Call(module=(nn.Tanh(),)),
    "to": Call(args=(torch.float32,)),
    "type": Call(args=(torch.float32,)),
    "type_as": Call(args=SECOND),
}


@dataclass
class Form:
    """A row in one spelling."""

    row: Operator
    spelling: object

    def __str__(self):
        name = getattr(self.spelling, "__name__", self.spelling)
        return f"{self.row.name}-{name}"

    @property
    def call(self):
        return SPELLED.get(self.spelling) or CALLS.get(self.row.name) or Call()

    @property
    def function(self):
        """Calls the operator on a tensor."""
        call, spelling = self.call, self.spelling
        if isinstance(spelling, type):
            return spelling(*call.module).eval()
        if isinstance(spelling, str):
            return lambda x: getattr(x, spelling)(*call.args, **call.kwargs)
        return lambda x: spelling([x, x] if call.several else x, *call.args, **call.kwargs)

    @property
    def traced(self):
        return traced(self.function)

    def values(self, x):
        """All that it gives, in one row."""
        return torch.cat([part.flatten() for part in pytree.tree_leaves(self.function(x.clone()))])

    def input(self, seed=0):
        """Numbers of both signs, none of them 0, and as many axes as a name such as MaxPool3d asks for."""
        found = re.search("([123])d", getattr(self.spelling, "__name__", ""))
        shape = (2, 4, 8, 8, 8)[: 2 + int(found[1])] if found else self.call.shape
        return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class EveryModuleIsALeaf(fx.Tracer):
    def is_leaf_module(self, module, name):
        return not isinstance(module, nn.Sequential | Function)


def traced(function):
    """The node that makes the output of the network of one function, and the network."""
    root = nn.Sequential(Function(function))
    network = fx.GraphModule(root, EveryModuleIsALeaf().trace(root))
    return network.graph.output_node().all_input_nodes[0], network


FORMS = [Form(row, spelling) for row in OPERATORS for spelling in row.spellings]


def each(wanted=lambda row: True):
    """Parametrizes over the spellings of all rows that are `wanted`."""
    return pytest.mark.parametrize("form", [f for f in FORMS if wanted(f.row)], ids=str)


def test_no_spelling_stands_in_two_rows():
    assert len(ROWS) == sum(len(row.spellings) for row in OPERATORS)
    assert len({row.name for row in OPERATORS}) == len(OPERATORS)


@each()
def test_it_is_found_in_a_traced_graph(form):
    node, network = form.traced
    assert operator_of(node, network) is form.row
    assert vocabulary.moves(node, network) == form.row.moves
    assert vocabulary.is_clip(node, network) == (form.row.bounds is not None)


@each(lambda row: row.bounds is None)
def test_movers_and_nothing_else_make_no_values(form):
    x = form.input()
    allowed = torch.cat([x.flatten(), x.new_zeros(int(form.row.inserts_zeros))])
    assert torch.isin(form.values(x), allowed).all().item() == form.row.moves


@each(lambda row: row.bounds is not None)
def test_a_clip_clips_to_its_bounds(form):
    x = form.input()
    low, high = vocabulary.bounds_of(*form.traced)
    assert x.min() < low or low == -math.inf
    assert x.max() > high or high == math.inf
    torch.testing.assert_close(form.values(x), x.flatten().clamp(low, high), rtol=0, atol=0)


@each()
def test_what_is_homogeneous_scales_with_its_input(form):
    x = form.input()
    if vocabulary.is_homogeneous(*form.traced):
        torch.testing.assert_close(form.values(2 * x), 2 * form.values(x))
    else:
        assert not form.row.homogeneous


@each()
def test_what_gives_or_keeps_no_negative_values(form):
    x = form.input()
    if vocabulary.gives_non_negative(*form.traced):
        assert form.values(x).min() >= 0
    else:
        assert not form.row.non_negative
    if vocabulary.keeps_non_negative(*form.traced):
        assert form.values(x.abs()).min() >= 0
        assert form.row.keeps_non_negative


@each(lambda row: row.keeps_channels)
def test_each_channel_is_made_of_itself(form):
    x = form.input()
    other = form.input(seed=1)
    other[:, 2] = x[:, 2]
    one, two = form.function(x.clone()), form.function(other.clone())
    assert one.ndim == x.ndim
    assert one.shape[1] == x.shape[1]
    changed = (one != two).transpose(0, 1).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, True]


@each(lambda row: row.silent)
def test_evaluation_skips_it(form):
    assert torch.equal(form.function(form.input()), form.input())


@each(lambda row: row.gate is not None)
def test_a_gated_product(form):
    x = form.input()
    torch.testing.assert_close(form.values(x), (x * form.row.gate(x)).flatten())


def test_every_layer_that_may_be_quantized_is_known_as_a_function():
    transposed = {kind for kind in WEIGHT_LAYERS if "Transpose" in kind.__name__}
    modules = {row.module for row in OPERATORS}
    assert set(WEIGHT_LAYERS) - transposed <= modules


# What the call says, and whether it then moves, keeps non-negative values so, and is homogeneous.
DEPENDS = {
    "pad by -1": (lambda x: F.pad(x, (1, 1), value=-1.0), False, False, False),
    "pad by 1": (lambda x: F.pad(x, (1, 1), "constant", 1.0), False, True, False),
    "pad by 0": (lambda x: F.pad(x, (1, 1), "constant", 0), True, True, True),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), True, True, True),
    "ConstantPad2d": (nn.ConstantPad2d(1, -1.0), False, False, False),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), True, True, True),
    "nearest-exact": (lambda x: F.interpolate(x, None, 2, "nearest-exact"), True, True, True),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), False, True, True),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), False, False, True),
    "Upsample bicubic": (nn.Upsample(None, 2, "bicubic"), False, False, True),
    "UpsamplingBilinear2d": (nn.UpsamplingBilinear2d(None, 2), False, True, True),
    "sum": (lambda x: torch.add(x, x.flip(3), alpha=2), False, True, False),
    "difference": (lambda x: torch.add(x, x.flip(3), alpha=-2), False, False, False),
    "clamp to -1": (lambda x: x.clamp(max=-1), False, False, False),
    "clamp to 1": (lambda x: x.clamp(min=1), False, False, False),
    "clamp at 0": (lambda x: x.clamp(min=0), False, False, True),
}


@pytest.mark.parametrize("name", DEPENDS)
def test_what_depends_on_the_arguments_of_the_call(name):
    function, *expected = DEPENDS[name]
    node, network = traced(function)
    asked = vocabulary.moves, vocabulary.keeps_non_negative, vocabulary.is_homogeneous
    assert [ask(node, network) for ask in asked] == expected
    moved, kept, homogeneous = expected
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if moved:
        assert torch.isin(function(x), torch.cat([x.flatten(), torch.zeros(1)])).all()
    assert kept <= (function(x.abs()).min() >= 0).item()
    if homogeneous:
        torch.testing.assert_close(function(2 * x), 2 * function(x))


@pytest.mark.parametrize("name", ["pad by -1", "ConstantPad2d", "bicubic", "difference"])
def test_it_makes_negative_values_of_others(name):
    x = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert DEPENDS[name][0](x).min() < 0


BOUNDS = {
    "both": (lambda x: x.clamp(0, 6), (0, 6)),
    "by keyword": (lambda x: torch.clamp(x, max=6), (-math.inf, 6)),
    "a tensor": (lambda x: torch.clamp(x, max=x.abs()), None),
    "a number and a tensor": (lambda x: torch.clamp(x, 0, x.abs()), None),
    "hardtanh": (lambda x: F.hardtanh(x, max_val=2.0), (-1.0, 2.0)),
    "Hardtanh": (nn.Hardtanh(-2, 3), (-2, 3)),
    "no clip": (lambda x: x.sigmoid(), None),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_numbers_or_there_are_none(name):
    function, expected = BOUNDS[name]
    assert vocabulary.bounds_of(*traced(function)) == expected


def test_a_placeholder_has_no_row_whatever_its_name():
    graph = fx.Graph()
    node = graph.placeholder("relu")
    graph.output(node)
    assert operator_of(node, fx.GraphModule(nn.Module(), graph)) is UNKNOWN
