"""Open lengths, such as the batch's, as a graph counts them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qdeploy.deploy.edits import constant


def count_by_size(model: ir.Model) -> None:
    """Divides the size of an input where a Shape tells an open length of it, such as the batch's, in place.

    OpenVINO asks the first convolution in place of what the Shape reads. That convolution then has
    two readers and keeps its bias apart, and with open lengths the rounding behind it adds the first
    channel's bias to all channels. In a quotient it does not recognise the length.
    """
    for node in list(model.graph):
        if node.op_type == "Shape" and (lengths := _lengths(node, model.graph)):
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], lengths, node.outputs, lengths[-1].outputs
            )


def _lengths(node: ir.Node, graph: ir.Graph) -> list[ir.Node]:
    """Operators whose last one gives what a Shape gives; none if a length is that of no input."""
    start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
    lengths = list(node.inputs[0].shape or ())[start:end]  # type: ignore[union-attr]
    nodes: list[ir.Node] = []
    parts: list[ir.Value] = []
    for length in lengths:
        if isinstance(length, int):
            parts.append(constant(graph, np.array([length])))
            continue
        counted = _counted(length, graph)
        if not counted:
            return []
        nodes += counted
        parts.append(counted[-1].outputs[0])
    return [*nodes, ir.node("Concat", parts, {"axis": 0})] if len(parts) > 1 else nodes


def _counted(length: ir.SymbolicDim, graph: ir.Graph) -> list[ir.Node]:
    """How many values an input with this length has for each of those at its first place there."""
    for value in graph.inputs:
        sizes = list(value.shape or ())
        if length not in sizes:
            continue
        whole = ir.node("Size", [value])
        if len([n for n in sizes if not isinstance(n, int)]) == 1:
            rest = np.prod([n for n in sizes if isinstance(n, int)], dtype=np.int64)
            parts, count = [whole], constant(graph, rest.reshape(1))
        else:
            bounds = ([0], [1], [sizes.index(length)])
            first = ir.node("Slice", [value, *(constant(graph, np.array(one)) for one in bounds)])
            parts = [whole, first, ir.node("Size", [first.outputs[0]])]
            # A quotient of two scalars; the Shape gave a list.
            parts.append(
                ir.node("Unsqueeze", [parts[-1].outputs[0], constant(graph, np.array([0]))])
            )
            count = parts[-1].outputs[0]
        return [*parts, ir.node("Div", [whole.outputs[0], count])]
    return []
