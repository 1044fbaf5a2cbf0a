"""LSTM, GRU and RNN as the matrices that they multiply by, each of them a layer of its own.

A recurrent layer multiplies what it reads by one matrix (`ih`) and its state by another (`hh`), in each
direction. These are quantized as a Linear's weight is; runtimes compute with what the codes stand for,
in float. Layer 1 of `lstm`, read backwards, has `lstm.l1.ih_reverse` and `lstm.l1.hh_reverse`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.errors import QdeployError
from qdeploy.grid import QTensor
from qdeploy.layers import operators
from qdeploy.layers.integer import IntegerLayer
from qdeploy.layers.precision import widened
from qdeploy.layers.product import RecurrentWeight
from qdeploy.layers.quantized import QuantizedLayer, passing_by

State = Tensor | tuple[Tensor, Tensor]
DIRECTIONS = ("", "_reverse")


class Recurrent(nn.Module):
    """An nn.LSTM, nn.GRU or nn.RNN whose matrices are modules; what it says of itself it says as well.

    Its children l0, l1 ... each hold `ih` and `hh`, and where it is bidirectional `ih_reverse` and
    `hh_reverse`: a `RecurrentWeight` [gates * hidden, in] each, with its bias, or what became of one.
    """

    mode: str  # LSTM, GRU, RNN_TANH or RNN_RELU
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.__dict__ |= {n: v for n, v in vars(layer).items() if not n.startswith("_")}
        for number in range(layer.num_layers):
            parts = nn.Module()
            for name in self.names():
                kind = layer.mode.partition("_")[0]
                matrix, bias = (
                    layer._parameters.get(f"{of}_{tensor_name(name, number)}")
                    for of in ("weight", "bias")
                )
                assert matrix is not None
                parts.add_module(name, RecurrentWeight(kind, matrix, bias))
            self.add_module(f"l{number}", parts)
        self.train(layer.training)

    def names(self) -> list[str]:
        """Of the matrices of one layer, in the order of torch's weights."""
        ways = DIRECTIONS[: 1 + self.bidirectional]
        return [f"{matrix}{way}" for way in ways for matrix in ("ih", "hh")]

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Name and module of each matrix, such as "l0.ih", in the order of torch's weights."""
        for number in range(self.num_layers):
            for name in self.names():
                yield f"l{number}.{name}", self.get_submodule(f"l{number}.{name}")

    def open_state(self, state: dict[str, Tensor], place: str) -> None:
        """Gives the weights of torch's layer in `state` the names that they have here."""
        for number in range(self.num_layers):
            for name in self.names():
                for kind in ("weight", "bias"):
                    given = f"{place}{kind}_{tensor_name(name, number)}"
                    if given in state:
                        state[f"{place}l{number}.{name}.{kind}"] = state.pop(given)

    def flatten_parameters(self) -> None:
        """Nothing: weights that are rounded at each step have no place in memory to be put together."""

    def forward(self, x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """As torch's layer: x [N, T, in], [T, N, in] or of one sequence [T, in]."""
        parts = [part for _, part in self.parts()]
        tensors = []
        for ih, hh in zip(parts[::2], parts[1::2], strict=True):
            tensors += [matrix_of(ih), matrix_of(hh), *((ih.bias, hh.bias) if self.bias else ())]
        x, states, alone = self.batched(x, hx)
        if not states:
            states = self.zeros(x)
        run = getattr(torch, self.mode.lower())
        given = states if self.mode == "LSTM" else states[0]
        y, *last = run(
            x, given, tensors, self.bias, self.num_layers, self.dropout, self.training,
            self.bidirectional, self.batch_first,
        )  # fmt: skip
        y = widened(y)
        for part in parts:
            if self.training and isinstance(part, QuantizedLayer) and part.quantizer.committed:
                y = passing_by(part.quantizer.latent, y)
        return self.as_given(y, last, alone)

    def batched(self, x: Tensor, hx: State | None) -> tuple[Tensor, list[Tensor], bool]:
        """x with a batch, the states [layers * directions, N, hidden], and whether it was one sequence."""
        states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        alone = x.ndim == 2
        if alone:
            x, states = x.unsqueeze(self.batch_axis), [h.unsqueeze(1) for h in states]
        if not torch.compiler.is_exporting():
            self.check(x, states)
        return x, states, alone

    def check(self, x: Tensor, states: list[Tensor]) -> None:
        """Errors: QdeployError for sizes that do not fit: torch's operator would read foreign memory."""
        wanted = self.state_shape(x)
        shapes = [tuple(h.shape) for h in states]
        if x.ndim != 3 or x.shape[-1] != self.input_size or any(one != wanted for one in shapes):
            raise QdeployError(
                f"this {self.mode} takes {self.axes} and states {[*wanted]} with it; it was given "
                f"{[*x.shape]}" + "".join(f", {[*one]}" for one in shapes)
            )

    @property
    def axes(self) -> str:
        """Of what it reads, in words."""
        order = "sequences, steps" if self.batch_first else "steps, sequences"
        return f"[{order}, {self.input_size}]"

    @property
    def batch_axis(self) -> int:
        return 0 if self.batch_first else 1

    def state_shape(self, x: Tensor) -> tuple[int, int, int]:
        """[layers * directions, N, hidden]"""
        count = self.num_layers * (1 + self.bidirectional)
        return count, x.shape[self.batch_axis], self.hidden_size

    def zeros(self, x: Tensor) -> list[Tensor]:
        zero = x.new_zeros(self.state_shape(x))
        return [zero, zero] if self.mode == "LSTM" else [zero]

    def as_given(self, y: Tensor, last: list[Tensor], alone: bool) -> tuple[Tensor, State]:
        """y and the last states, as many and of such a shape as torch's layer gives them."""
        if alone:
            y, last = y.squeeze(self.batch_axis), [h.squeeze(1) for h in last]
        last = [widened(h) for h in last]
        return y, (last[0], last[1]) if self.mode == "LSTM" else last[0]

    def extra_repr(self) -> str:
        return (
            f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"batch_first={self.batch_first}, dropout={self.dropout}, "
            f"bidirectional={self.bidirectional}"
        )


def tensor_name(name: str, number: int) -> str:
    """What torch calls the matrix `name` of a layer: "ih_reverse" of layer 1 is "ih_l1_reverse"."""
    matrix, *way = name.split("_")
    return "_".join([matrix, f"l{number}", *way])


def matrix_of(part: Any) -> Tensor:
    """The weight [gates * hidden, in] that the network multiplies by now."""
    if isinstance(part, QuantizedLayer):
        return part.quantizer()
    return part.values() if isinstance(part, IntegerLayer) else part.weight


def is_recurrence(layer: nn.Module) -> bool:
    """Whether it can be a `Recurrent`: of torch's own, and without a projection, which ONNX has not."""
    return type(layer) in (nn.LSTM, nn.GRU, nn.RNN) and not layer.proj_size


class IntegerRecurrent(Recurrent):
    """What `convert` makes of it: codes with their gates in the order of ONNX, one ONNX node a layer."""

    def __init__(self, recurrent: Recurrent) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {n: v for n, v in vars(recurrent).items() if not n.startswith("_")}
        for name, part in recurrent.parts():
            layer, _, own = name.partition(".")
            if layer not in self._modules:
                self.add_module(layer, nn.Module())
            self.get_submodule(layer).add_module(own, with_gates_of_onnx(part, self.mode))

    def forward(self, x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        x, states, alone = self.batched(x, hx)
        y = x.transpose(0, 1) if self.batch_first else x
        last = []
        for number in range(self.num_layers):
            y, *ends = self.layer(number, y, states)
            last.append(ends)
        y = y.transpose(0, 1) if self.batch_first else y
        joined = [torch.cat(ends) if len(ends) > 1 else ends[0] for ends in zip(*last, strict=True)]
        return self.as_given(y, joined, alone)

    def layer(self, number: int, x: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        """x [T, N, in] to [T, N, directions * hidden] and the last states [directions, N, hidden]."""
        parts: list[Any] = [self.get_submodule(f"l{number}.{name}") for name in self.names()]
        ways = len(parts) // 2
        w, r = (torch.stack([matrix_of(part) for part in parts[i::2]]) for i in (0, 1))
        b = torch.stack([part.bias for part in parts]).reshape(ways, -1) if self.bias else None
        own = [h[number * ways : (number + 1) * ways] for h in states]
        h, c = own[0] if own else None, own[1] if len(own) > 1 else None
        if self.mode == "LSTM":
            y, *ends = operators.lstm(x, w, r, b, h, c)
        else:
            y, *ends = operators.recurrence(x, w, r, b, h, self.mode)
        y = y.squeeze(1) if ways == 1 else y.transpose(1, 2).flatten(2)
        return y, *ends


@torch.no_grad()
def with_gates_of_onnx(part: Any, mode: str) -> nn.Module:
    """The matrix and the bias with their rows in ONNX's order; codes of a quantized one."""
    ordered = partial(operators.with_gates, order=operators.GATES[mode])
    if not isinstance(part, QuantizedLayer):
        bias = None if part.bias is None else ordered(part.bias)
        return RecurrentWeight(part.kind, ordered(part.weight), bias)
    weight, bias = part.integers()
    rows = QTensor(ordered(weight.codes), ordered(weight.scale), ordered(weight.zero), weight.grid)
    return IntegerLayer(part.kind, part.product.shipped, rows, ordered(bias), None)
