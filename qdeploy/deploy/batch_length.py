"""The length of a batch as a graph counts it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qdeploy.deploy.edits import constant


def count_batch_by_size(model: ir.Model) -> None:
    """Divides the size of an input where a Shape tells the length of the batch, in place.

    OpenVINO asks the first convolution in place of what the Shape reads. That convolution then has
    two readers and keeps its bias apart, and with an open batch the rounding behind it adds the first
    channel's bias to all channels. In a quotient it does not recognise the length.
    """
    for node in list(model.graph):
        if node.op_type == "Shape" and (lengths := _lengths(node, model.graph)):
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], lengths, node.outputs, lengths[-1].outputs
            )


def _lengths(node: ir.Node, graph: ir.Graph) -> list[ir.Node]:
    """Operators whose last one gives what a Shape gives; none if another length is open."""
    start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
    lengths = list(node.inputs[0].shape or ())[start:end]  # type: ignore[union-attr]
    nodes: list[ir.Node] = []
    parts: list[ir.Value] = []
    for length in lengths:
        if isinstance(length, int):
            parts.append(constant(graph, np.array([length])))
        elif (source := _input_of_batches(length, graph)) is not None:
            rest = np.prod([n for n in source.shape or () if isinstance(n, int)], dtype=np.int64)
            size = ir.node("Size", [source])
            nodes += [size, ir.node("Div", [size.outputs[0], constant(graph, rest.reshape(1))])]
            parts.append(nodes[-1].outputs[0])
        else:
            return []
    return [*nodes, ir.node("Concat", parts, {"axis": 0})] if len(parts) > 1 else nodes


def _input_of_batches(length: ir.SymbolicDim, graph: ir.Graph) -> ir.Value | None:
    """The first input with this open length and no other."""
    for value in graph.inputs:
        if [n for n in value.shape or () if not isinstance(n, int)] == [length]:
            return value
    return None
