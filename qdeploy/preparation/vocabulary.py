"""What preparation knows of PyTorch's operators: one row for each, with all of its spellings.

`operator_of` finds the row of a node in a traced graph, whichever way the network spells it. The
functions below the table answer what depends on the arguments of the call. A new spelling is one
more entry in its row, and tests/preparation/test_vocabulary.py runs every row in every spelling.
Spellings in place have no entry: in_place.py writes them out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from qdeploy.layers.activation import DeferredReLU
from qdeploy.layers.product import FUNCTIONS
from qdeploy.preparation.no_grad import detached
from qdeploy.preparation.tracer import TrainingOnly, by_mode


class Argument(NamedTuple):
    """A number or a word that a call is given by position or by name, or a module by an attribute."""

    name: str
    position: int
    default: Any = None


Bounds = tuple[float | Argument, float | Argument]


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of PyTorch."""

    name: str
    spellings: tuple[Any, ...]  # functions, names of methods, and types of modules
    moves: bool = False  # every value it gives is one that it read, or a 0 if it `inserts_zeros`
    inserts_zeros: bool = False
    keeps_channels: bool = False  # they stay the second axis, and each is made of itself alone
    silent: bool = False  # it gives its input back in evaluation
    bounds: Bounds | None = None  # that it clips to; None for what is no clip
    non_negative: bool = False  # it gives no negative value
    keeps_non_negative: bool = False  # nor does it where it reads none
    homogeneous: bool = False  # f(s x) = s f(x) for every s > 0
    gate: Callable[..., Any] | None = None  # it is x * gate(x)
    module: type[nn.Module] | None = None  # that a call of the function amounts to


def mover(name: str, *spellings: Any, **more: Any) -> Operator:
    """An operator that makes no values."""
    return Operator(name, spellings, moves=True, keeps_non_negative=True, homogeneous=True, **more)


def average(name: str, *spellings: Any, **more: Any) -> Operator:
    """An operator whose values are means of those that it reads."""
    return Operator(name, spellings, keeps_non_negative=True, homogeneous=True, **more)


def dropout(name: str, *spellings: Any, module: type[nn.Module]) -> Operator:
    """In training it scales the values that stay."""
    return mover(
        name, module, *spellings, inserts_zeros=True, keeps_channels=True, silent=True, module=module
    )  # fmt: skip


# A row that preparation asks for has a name of its own, as ADD has.
OPERATORS = (
    # Clips.
    Operator(
        "relu", (nn.ReLU, DeferredReLU, F.relu, torch.relu, "relu"), bounds=(0.0, inf), keeps_channels=True,
    ),
    Operator("relu6", (nn.ReLU6, F.relu6), bounds=(0.0, 6.0), keeps_channels=True),
    Operator(
        "hardtanh", (nn.Hardtanh, F.hardtanh),
        bounds=(Argument("min_val", 1, -1.0), Argument("max_val", 2, 1.0)), keeps_channels=True,
    ),
    Operator(
        "clamp", (torch.clamp, torch.clip, "clamp", "clip"),
        bounds=(Argument("min", 1), Argument("max", 2)), keeps_channels=True,
    ),
    Operator(
        "clamp_min", (torch.clamp_min, "clamp_min"),
        bounds=(Argument("min", 1), inf), keeps_channels=True,
    ),
    Operator(
        "clamp_max", (torch.clamp_max, "clamp_max"),
        bounds=(-inf, Argument("max", 1)), keeps_channels=True,
    ),
    # Other activations.
    Operator(
        "leaky_relu", (nn.LeakyReLU, F.leaky_relu),
        homogeneous=True, keeps_non_negative=True, keeps_channels=True,
    ),
    SIGMOID := Operator(
        "sigmoid", (nn.Sigmoid, torch.sigmoid, F.sigmoid, torch.special.expit, "sigmoid"),
        non_negative=True, keeps_channels=True,
    ),
    HARDSIGMOID := Operator(
        "hardsigmoid", (nn.Hardsigmoid, F.hardsigmoid), non_negative=True, keeps_channels=True,
    ),
    Operator("silu", (nn.SiLU, F.silu), gate=torch.sigmoid, keeps_channels=True),
    Operator("hardswish", (nn.Hardswish, F.hardswish), gate=F.hardsigmoid, keeps_channels=True),
    SOFTMAX := Operator(
        "softmax", (nn.Softmax, nn.Softmax2d, torch.softmax, torch.special.softmax, F.softmax, "softmax"),
        non_negative=True,
    ),
    # Arithmetic.
    ADD := Operator(
        "add", (operator.add, torch.add, "add"), keeps_non_negative=True
    ),
    SUBTRACT := Operator(
        "subtract", (operator.sub, torch.sub, torch.subtract, "sub", "subtract"),
    ),
    MULTIPLY := Operator(
        "multiply", (operator.mul, torch.mul, torch.multiply, "mul", "multiply"), keeps_non_negative=True,
    ),
    DIVIDE := Operator(
        "divide",
        (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"),
        keeps_non_negative=True,
    ),
    MATRIX_PRODUCT := Operator(
        "matmul",
        (operator.matmul, torch.matmul, torch.bmm, torch.mm, "matmul", "bmm", "mm", "__matmul__"),
    ),
    POWER := Operator("power", (operator.pow, torch.pow, "pow"), keeps_non_negative=True),
    # Functions of one value.
    ABSOLUTE := Operator(
        "absolute", (operator.abs, torch.abs, torch.absolute, "abs", "absolute"),
        non_negative=True, homogeneous=True, keeps_channels=True,
    ),
    SQUARE := Operator("square", (torch.square, "square"), non_negative=True),
    Operator("exponential", (torch.exp, "exp"), non_negative=True),
    Operator("softplus", (nn.Softplus, F.softplus), non_negative=True),
    SQUARE_ROOT := Operator("square_root", (torch.sqrt, "sqrt"), keeps_non_negative=True),
    RECIPROCAL := Operator(
        "reciprocal", (torch.reciprocal, "reciprocal"), keeps_non_negative=True
    ),
    RECIPROCAL_ROOT := Operator(
        "reciprocal_root", (torch.rsqrt, "rsqrt"), keeps_non_negative=True
    ),
    LOGARITHM := Operator(
        "logarithm", (torch.log, torch.log2, torch.log10, "log", "log2", "log10")
    ),
    # Averages and other figures of many values.
    AVERAGE := average(
        "avg_pool", nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        keeps_channels=True,
    ),
    ADAPTIVE_AVERAGE := average(
        "adaptive_avg_pool", nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, keeps_channels=True,
    ),
    average("bilinear", nn.UpsamplingBilinear2d, keeps_channels=True),
    MEAN := average("mean", torch.mean, "mean"),
    SUM := average("sum", torch.sum, "sum"),
    NORM := average(
        "norm", torch.norm, torch.linalg.norm, torch.linalg.vector_norm, "norm", non_negative=True
    ),
    DEVIATION := average("deviation", torch.std, "std", non_negative=True),
    VARIANCE := Operator("variance", (torch.var, "var"), non_negative=True),
    # Movers that change no shape.
    mover("identity", nn.Identity, TrainingOnly, keeps_channels=True, silent=True),
    mover("by_mode", by_mode, keeps_channels=True),
    dropout("dropout", F.dropout, torch.dropout, module=nn.Dropout),
    dropout("dropout1d", F.dropout1d, module=nn.Dropout1d),
    dropout("dropout2d", F.dropout2d, module=nn.Dropout2d),
    dropout("dropout3d", F.dropout3d, module=nn.Dropout3d),
    mover("clone", torch.clone, "clone", keeps_channels=True),
    mover("contiguous", "contiguous", keeps_channels=True),
    mover("convert", "to", "type", "type_as", "float", "cpu", keeps_channels=True),  # float to float
    mover("detach", torch.detach, "detach", detached, keeps_channels=True),
    # Movers over the pixels of each channel.
    MAX_POOL := mover(
        "max_pool", nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d,
        torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, keeps_channels=True,
    ),
    mover("amax", torch.amax, "amax"),
    mover(
        "adaptive_max_pool", nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
        F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, keeps_channels=True,
    ),
    INTERPOLATE := mover(
        "interpolate", nn.Upsample, nn.UpsamplingNearest2d, F.interpolate, keeps_channels=True
    ),
    PAD := mover(
        "pad", nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
        nn.ConstantPad3d, F.pad, inserts_zeros=True,
    ),
    mover(
        "border", nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d,
        nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
        keeps_channels=True,
    ),
    # Movers between axes and tensors.
    FLATTEN := mover("flatten", nn.Flatten, torch.flatten, "flatten"),
    RESHAPE := mover("reshape", torch.reshape, "reshape", "view"),
    mover("reshape_as", "reshape_as", "view_as"),
    mover("unflatten", nn.Unflatten, torch.unflatten, "unflatten"),
    PERMUTE := mover("permute", torch.permute, "permute"),
    mover("transpose", torch.transpose, torch.swapaxes, "transpose", "swapaxes"),
    mover("movedim", torch.movedim, "movedim"),
    mover("squeeze", torch.squeeze, "squeeze"),
    mover("unsqueeze", torch.unsqueeze, "unsqueeze"),
    mover("expand", "expand"),
    mover("expand_as", "expand_as"),
    mover("repeat", torch.tile, "repeat", "tile"),
    mover("roll", torch.roll, "roll"),
    mover("flip", torch.flip, "flip"),
    mover("narrow", torch.narrow, "narrow"),
    mover("chunk", torch.chunk, "chunk"),
    mover("split", torch.split, "split"),
    mover("unbind", torch.unbind, "unbind"),
    GETITEM := mover("getitem", operator.getitem),
    mover("concat", torch.cat, torch.concat, torch.concatenate, torch.stack),
    mover("pixel_shuffle", nn.PixelShuffle, F.pixel_shuffle),
    mover("pixel_unshuffle", nn.PixelUnshuffle, F.pixel_unshuffle),
    mover("channel_shuffle", nn.ChannelShuffle, F.channel_shuffle),
    # Products with weights; as modules they are known by `WEIGHT_LAYERS`.
    *(Operator(function.__name__, (function,), module=layer) for function, layer in FUNCTIONS.items()),
)  # fmt: skip

ROWS = {spelling: row for row in OPERATORS for spelling in row.spellings}
UNKNOWN = Operator("unknown", ())  # what the table has no row for, so that nothing is said of it


def spelling_of(node: fx.Node, network: fx.GraphModule) -> Any:
    """The type of the module, the function or the name of the method that a node calls, if any."""
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target)))
    return node.target if node.op in ("call_function", "call_method") else None


def operator_of(node: fx.Node, network: fx.GraphModule) -> Operator:
    """The row of what a node calls; UNKNOWN where the table has none."""
    return ROWS.get(spelling_of(node, network), UNKNOWN)


def argument(node: fx.Node, network: fx.GraphModule, wanted: Argument) -> Any:
    """What the call is given, or the module was made with."""
    if node.op == "call_module":
        return getattr(network.get_submodule(str(node.target)), wanted.name, wanted.default)
    if len(node.args) > wanted.position:
        return node.args[wanted.position]
    return node.kwargs.get(wanted.name, wanted.default)


def bounds_of(node: fx.Node, network: fx.GraphModule) -> tuple[float, float] | None:
    """What a clip clips to, without a bound an infinity; None for other nodes and bounds of tensors."""
    bounds = operator_of(node, network).bounds
    if bounds is None:
        return None
    low, high = (
        argument(node, network, bound) if isinstance(bound, Argument) else bound for bound in bounds
    )
    low, high = -inf if low is None else low, inf if high is None else high
    return (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else None


def is_clip(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it clips all values alike, as a ReLU does: to numbers, or to tensors of one number."""
    bounds = operator_of(node, network).bounds
    given = [argument(node, network, b) for b in bounds or () if isinstance(b, Argument)]
    return bounds is not None and all(
        bound.meta["tensor_meta"].shape.numel() == 1
        for bound in given
        if isinstance(bound, fx.Node) and "tensor_meta" in bound.meta
    )


def is_relu(node: fx.Node, network: fx.GraphModule) -> bool:
    return bounds_of(node, network) == (0, inf)


def moves(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it makes no values: interpolation between values does, and so does padding by a number."""
    row = operator_of(node, network)
    if row is INTERPOLATE:
        return _interpolation(node, network).startswith("nearest")
    if _padding(node, network) == -inf:  # the lowest code, which no maximum is
        return all(operator_of(user, network) is MAX_POOL for user in node.users)
    return row.moves and _padding(node, network) == 0


def gives_non_negative(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether no value of it is negative, whatever it reads."""
    row, bounds = operator_of(node, network), bounds_of(node, network)
    if row is MULTIPLY:
        return node.args[:1] == node.args[1:]  # x * x
    if row is POWER:
        exponent = argument(node, network, Argument("exponent", 1))
        return isinstance(exponent, int | float) and exponent % 2 == 0
    return row.non_negative if bounds is None else min(bounds) >= 0


def keeps_non_negative(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it makes no negative value of values of which none is.

    A cubic overshoots, and a sum may have a factor for its second term.
    """
    row = operator_of(node, network)
    if row is INTERPOLATE:
        return _interpolation(node, network) != "bicubic"
    number = _padding(node, network)
    if row is ADD:
        number = argument(node, network, Argument("alpha", 2, 1))
    return row.keeps_non_negative and isinstance(number, int | float) and number >= 0


def is_homogeneous(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether f(s x) = s f(x) for every s > 0: of a clip where it clips at 0 or not at all."""
    bounds = bounds_of(node, network)
    if bounds is not None:
        return {*bounds} <= {-inf, 0, inf}
    return operator_of(node, network).homogeneous and _padding(node, network) == 0


def _interpolation(node: fx.Node, network: fx.GraphModule) -> str:
    return str(argument(node, network, Argument("mode", 3, "nearest")))


def _padding(node: fx.Node, network: fx.GraphModule) -> Any:
    """The number that a `pad` surrounds values by; 0 where it repeats them, and of other operators."""
    if operator_of(node, network) is not PAD:
        return 0
    if argument(node, network, Argument("mode", 2, "constant")) != "constant":
        return 0
    return argument(node, network, Argument("value", 3)) or 0
