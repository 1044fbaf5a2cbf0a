"""What lets ONNX Runtime turn weights of 8 bits into uint8 at load (session.x64quantprecision = 1).

It does so on x86 without VNNI, where products of uint8 with int8 weights beyond 7 bits may pass int16.
For each layer it replaces the codes and their zero point, by name: what two layers share would be
replaced twice, and loading fails. So such layers share neither.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from qdeploy.deploy.edits import constant, unmoved
from qdeploy.layers.bias import SAFE_CODE


def readers_of_wide_weights(model: ir.Model) -> list[ir.Node]:
    """Each DequantizeLinear of int8 weights beyond 7 bits. Precondition: weights are not packed yet."""
    dequantizers = (node for node in model.graph if node.op_type == "DequantizeLinear")
    return [node for node in dequantizers if _is_wide(unmoved(node.inputs[0]))]


def _is_wide(codes: ir.Value | None) -> bool:
    if codes is None or codes.const_value is None or codes.dtype != ir.DataType.INT8:
        return False
    return int(np.abs(codes.const_value.numpy().astype(np.int16)).max(initial=0)) > SAFE_CODE


def part_wide_weights(model: ir.Model) -> None:
    """Gives each layer of wide weights a DequantizeLinear and codes of its own, in place.

    A weight that several layers use is stored once all the same: each of them but the first reads a
    Reshape of the codes of the one before, which is computed at load.
    """
    for node in readers_of_wide_weights(model):
        for use in list(node.outputs[0].uses())[1:]:
            twin = ir.node("DequantizeLinear", node.inputs, node.attributes)
            model.graph.insert_after(node, twin)
            use.node.replace_input_with(use.idx, twin.outputs[0])
    latest: dict[ir.Value, ir.Value] = {}
    for node in readers_of_wide_weights(model):
        codes = node.inputs[0]
        assert codes is not None
        if codes in latest:
            shape = constant(model.graph, np.array(codes.shape))
            again = ir.node("Reshape", [latest[codes], shape])
            again.outputs[0].type, again.outputs[0].shape = codes.type, codes.shape
            model.graph.insert_before(node, again)
            node.replace_input_with(0, again.outputs[0])
        latest[codes] = node.inputs[0]  # type: ignore[assignment]


def part_zero_points(dequantizers: Iterable[ir.Node]) -> None:
    """Gives each of these a zero point of its own, in place. Precondition: each has one."""
    met = set()
    for node in dequantizers:
        zero = node.inputs[2]
        assert zero is not None
        if zero in met:
            copied = constant(node.graph, zero.const_value.numpy())  # type: ignore[arg-type, union-attr]
            node.replace_input_with(2, copied)
        met.add(zero)
