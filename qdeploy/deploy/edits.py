"""What the rewrites of a graph ask and do again and again: look at neighbours, add constants and nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qdeploy.onnx_file import MOVERS

Pass = Callable[[ir.Model], object]

_numbers = itertools.count()


def constant(graph: ir.Graph, array: npt.ArrayLike) -> ir.Value:
    """A new constant of the graph; `share_initialisers` makes one of those that are equal."""
    value = np.asarray(array)
    name = f"constant #{next(_numbers)}"
    made = ir.val(name, const_value=ir.tensor(value, name=name))
    graph.register_initializer(made)
    return made


def unmoved(value: ir.Value | None) -> ir.Value | None:
    """The value before what only moved it on its way."""
    while value is not None and (maker := value.producer()) and maker.op_type in MOVERS:
        value = maker.inputs[0]
    return value


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The operator of this type that alone reads the value."""
    readers = [use.node for use in value.uses()]
    only = len(readers) == 1 and not value.is_graph_output() and readers[0].op_type == op_type
    return readers[0] if only else None


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The operator that makes the value, if it is of this type."""
    maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == op_type else None


def inserted(op_type: str, source: ir.Value, graph: ir.Graph) -> ir.Node:
    """A new operator on `source` that all its readers read instead."""
    node = ir.node(op_type, [source])
    result = node.outputs[0]
    result.type, result.shape = source.type, source.shape
    result.name, source.name = source.name, f"{source.name}_before_{op_type}"
    source.shape = None
    source.replace_all_uses_with(result, replace_graph_outputs=True)
    node.replace_input_with(0, source)
    graph.insert_after(source.producer(), node)  # type: ignore[arg-type]
    return node


def scalars(node: ir.Node) -> list[float]:
    """The scalar constants behind the first input."""
    return [found for found in map(number, node.inputs[1:]) if found is not None]


def number(value: ir.Value | None) -> float | None:
    """What a scalar constant holds; None for other values."""
    held = value.const_value if value is not None else None
    return held.numpy().item() if held is not None and held.size == 1 else None
