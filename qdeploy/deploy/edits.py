"""What the rewrites of a graph ask and do again and again: look at neighbours, add constants and nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Pass = Callable[[ir.Model], None]


class Initialisers:
    """Adds constants to a graph, each distinct one once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, array: npt.ArrayLike) -> ir.Value:
        value = np.asarray(array)
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self.known:
            names = (f"constant_{number}" for number in itertools.count())
            name = next(name for name in names if name not in self.graph.initializers)
            tensor = ir.tensor(value, name=name)
            self.known[key] = ir.val(name, const_value=tensor)
            self.graph.register_initializer(self.known[key])
        return self.known[key]


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The operator of this type that alone reads the value."""
    readers = [use.node for use in value.uses()]
    only = len(readers) == 1 and not value.is_graph_output() and readers[0].op_type == op_type
    return readers[0] if only else None


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
    constants = [value.const_value for value in node.inputs[1:] if value and value.const_value]
    return [constant.numpy().item() for constant in constants if constant.size == 1]


def number(value: ir.Value | None) -> float | None:
    constant = value.const_value if value is not None else None
    return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None
