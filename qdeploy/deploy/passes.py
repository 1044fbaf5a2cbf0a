"""Rewrites that store and guard what is in the graph; integer_passes.py has the other kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass

from qdeploy.deploy.edits import Pass, constant, made_by, unmoved
from qdeploy.deploy.integer_passes import ONTO_INTEGERS
from qdeploy.deploy.wide_weights import part_wide_weights
from qdeploy.onnx_file import MOVERS, RECURRENT

UINT8 = ir.DataType.UINT8
WITHOUT_INTEGER_KERNEL = {"ConvTranspose", "Gather", *RECURRENT}
DATA_MOVEMENT = MOVERS | {
    "Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Resize", "Slice", "SpaceToDepth", "Split", "Tile",
}  # fmt: skip


def unfold_float_weights(model: ir.Model) -> None:
    """Reads weights that meet no 8-bit codes by Cast and Mul, which the runtime computes once, at load.

    Weights of 16 bits, and those beside activations of 16 bits or in float: no integer kernel
    takes them, and a DequantizeLinear would be computed again in every run.
    """
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or not _is_float_weight(node):
            continue
        codes, scale, zero = node.inputs
        column = (-1, *[1] * (len(codes.shape) - 1))  # type: ignore[union-attr, arg-type]
        nodes = [ir.node("Cast", [codes], {"to": ir.DataType.FLOAT})]
        for op_type, value in (("Sub", zero), ("Mul", scale)):
            array = _as_float32(value).reshape(column)
            if op_type == "Mul" or array.any():
                operand = constant(model.graph, array)
                nodes.append(ir.node(op_type, [nodes[-1].outputs[0], operand]))
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs
        )


def look_up_codes(model: ir.Model) -> None:
    """Looks up codes and scales of an embedding, and multiplies what was found: the table stays codes.

    Of a DequantizeLinear in front ONNX Runtime would make a table of floats. Rows that are the same in
    every run, as those of positions are, are computed once, and stay.
    """
    for node in list(model.graph):
        table = made_by(node.inputs[0], "DequantizeLinear") if node.op_type == "Gather" else None
        if table is None or not _is_float_weight(table) or _is_constant(node.inputs[1]):
            continue
        codes, scale, zero = table.inputs
        rows = ir.node("Gather", [codes, node.inputs[1]], name=node.name)
        nodes = [rows, ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})]
        for op_type, values in (("Sub", zero), ("Mul", scale)):
            array = _as_float32(values)
            if op_type == "Mul" or array.any():
                column = constant(model.graph, array.reshape(-1, 1))
                found = ir.node("Gather", [column, node.inputs[1]])
                nodes += [found, ir.node(op_type, [nodes[-1].outputs[0], found.outputs[0]])]
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs
        )


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _as_float32(constant: ir.Value | None) -> npt.NDArray[np.float32]:
    return constant.const_value.numpy().astype(np.float32)  # type: ignore[union-attr]


def _is_float_weight(node: ir.Node) -> bool:
    codes = node.inputs[0]
    if codes is None or not codes.is_initializer() or codes.dtype == ir.DataType.INT32:
        return False
    return codes.dtype == ir.DataType.INT16 or not all(map(_reads_8_bits, _layers_behind(node)))


def _layers_behind(weight: ir.Node) -> Iterator[ir.Node]:
    """What computes with a weight, also where it is turned first."""
    for use in weight.outputs[0].uses():
        if use.node.op_type in MOVERS:
            yield from _layers_behind(use.node)
        else:
            yield use.node


def _reads_8_bits(layer: ir.Node) -> bool:
    """Whether 8-bit codes meet the weight there, in an operator that has an integer kernel."""
    if layer.op_type in WITHOUT_INTEGER_KERNEL:
        return False
    makers = [made_by(unmoved(value), "DequantizeLinear") for value in layer.inputs]
    zeros = [maker.inputs[2:] for maker in makers if maker is not None]
    return any(zero[0].dtype == UINT8 for zero in zeros if zero and zero[0])


def guard_float_layers(model: ir.Model) -> None:
    """Keeps float Conv and Gemm float where they stand between integer tensors.

    ONNX Runtime quantizes the float weight of a layer that reads a dequantized tensor and whose
    output is quantized again (WeightBiasQuantization, since 1.21). A Max with the smallest float
    in between changes no value and breaks that pattern. Weights of 16 bits are float there.
    """
    for node in list(model.graph):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not _has_float_weight(node):
            continue
        if made_by(node.inputs[0], "DequantizeLinear") is not None:
            _guard(node, model.graph)


def guard_softmaxes(model: ir.Model) -> None:
    """Keeps a softmax float that reads codes, perhaps moved: QLinearSoftmax is a step or two off in 5 %."""
    for node in list(model.graph):
        if node.op_type == "Softmax" and _comes_from_codes(node.inputs[0]):
            _guard(node, model.graph)


def _comes_from_codes(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type == "DequantizeLinear":
        return maker is not None
    return maker.op_type in DATA_MOVEMENT and any(map(_comes_from_codes, maker.inputs))


def _guard(node: ir.Node, graph: ir.Graph) -> None:
    """Puts a Max in front that changes no value, through which ONNX Runtime sees no codes."""
    lowest = constant(graph, np.float32(np.finfo(np.float32).min))
    guard = ir.node("Max", [node.inputs[0], lowest])
    graph.insert_before(node, guard)
    node.replace_input_with(0, guard.outputs[0])


def _has_float_weight(node: ir.Node) -> bool:
    weight = unmoved(node.inputs[1])
    return weight is not None and (weight.is_initializer() or made_by(weight, "Mul") is not None)


def share_initialisers(model: ir.Model) -> None:
    """Equal constants are stored once, and what nothing reads not at all."""
    RemoveUnusedNodesPass()(model)
    DeduplicateInitializersPass(size_limit=sys.maxsize)(model)


def strip_metadata(model: ir.Model) -> None:
    """Drops what the exporter notes for debugging: about 150 KB for a ResNet-18."""
    for holder in (model, model.graph, *model.graph, *model.functions.values()):
        holder.metadata_props.clear()
        holder.doc_string = None


def drop_default_attributes(model: ir.Model) -> None:
    """Drops attributes that only repeat the default of their operator, or say nothing of this node."""
    for node in model.graph:
        if node.op_type == "Reshape" and _keeps_no_empty_axis(node.inputs[1]):
            node.attributes.pop("allowzero", None)
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports[""])
        for name, attribute in list(node.attributes.items()):
            default = schema.attributes[name].default_value
            if node.op_type == "Resize" and name == "mode":
                continue  # OpenCV reads no Resize without it
            if default.name and ir.serde.deserialize_attribute(default) == attribute:
                del node.attributes[name]


def _keeps_no_empty_axis(shape: ir.Value | None) -> bool:
    """Whether a constant shape has no 0, of which alone `allowzero` says what it means."""
    held = shape.const_value if shape is not None else None
    return held is not None and bool(held.numpy().all())


BEFORE_PACKING: tuple[Pass, ...] = (
    *ONTO_INTEGERS,
    look_up_codes,
    unfold_float_weights,
    guard_float_layers,
    guard_softmaxes,
    share_initialisers,
    part_wide_weights,
)
AFTER_PACKING: tuple[Pass, ...] = (
    drop_default_attributes,
    strip_metadata,
)
