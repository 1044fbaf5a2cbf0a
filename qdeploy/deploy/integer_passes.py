"""Rewrites that change no value and bring more of a graph onto ONNX Runtime's integer kernels."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qdeploy.deploy.edits import Pass, constant, inserted, made_by, number, only_reader, scalars
from qdeploy.layers import kernels
from qdeploy.layers.kernels import Step

UINT8 = ir.DataType.UINT8


def global_average_pools(model: ir.Model) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel."""
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or not _over_height_and_width(node) or _is_too_fine(node):
            continue
        pool = ir.node("GlobalAveragePool", [node.inputs[0]])
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [pool], node.outputs, pool.outputs
        )
        if node.attributes.get_int("keepdims", 1) == 0:
            # The quantizer must stand right behind the pool; the flattening can wait.
            quantizer = only_reader(pool.outputs[0], "QuantizeLinear")
            inserted("Flatten", (quantizer or pool).outputs[0], model.graph)
            pool.outputs[0].shape = None


def _over_height_and_width(node: ir.Node) -> bool:
    source = node.inputs[0]
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None:
        return False
    return sorted(int(axis) % 4 for axis in axes.numpy().ravel()) == [2, 3]


def _is_too_fine(pool: ir.Node) -> bool:
    """True where the kernel refuses to average the codes, as for a sign."""
    flat = only_reader(pool.outputs[0], "Squeeze")
    image = made_by(pool.inputs[0], "Unsqueeze")  # AdaptiveAvgPool1d, in two dimensions
    quantizer = only_reader((flat or pool).outputs[0], "QuantizeLinear")
    source = made_by((image or pool).inputs[0], "DequantizeLinear")
    step, out = step_of(source), step_of(quantizer)
    return step is not None and out is not None and kernels.is_too_fine_to_average(step, out)


def step_of(quantizer: ir.Node | None) -> Step | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, where both are numbers."""
    found = scalars(quantizer) if quantizer is not None else []
    return Step(found[0], int(found[1])) if len(found) == 2 else None


def clip_on_integers(model: ir.Model) -> None:
    """A Relu or Clip in front of a quantizer becomes a Clip of its codes, or goes where they end.

    Rounding is monotonous, so the values are the same. ONNX Runtime keeps a Conv float if a Relu
    or Clip stands between it and its quantizer that does not end where the 8 bits end: ReLU6
    before k bits, or any with a zero point in the middle.
    """
    for node in list(model.graph):
        quantizer = only_reader(node.outputs[0], "QuantizeLinear")
        if quantizer is None or (codes := _clipped_codes(node, quantizer)) is None:
            continue
        node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
        model.graph.remove(node, safe=True)
        clip = only_reader(quantizer.outputs[0], "Clip")
        if clip is not None:
            first, last = scalars(clip)
            codes = max(codes[0], int(first)), min(codes[1], int(last))
            _set_bounds(clip, codes, model.graph)
        elif codes != (0, 255):
            clip = inserted("Clip", quantizer.outputs[0], model.graph)
            _set_bounds(clip, codes, model.graph)


def _clipped_codes(node: ir.Node, quantizer: ir.Node) -> tuple[int, int] | None:
    """The uint8 codes of the bounds of a Relu or Clip; None for other operators."""
    if node.op_type not in ("Relu", "Clip"):
        return None
    bounds = scalars(node) if node.op_type == "Clip" else [0, math.inf]
    grid = scalars(quantizer)
    if len(bounds) != 2 or len(grid) != 2 or quantizer.inputs[2].dtype != UINT8:  # type: ignore[union-attr]
        return None
    scale, zero = np.float32(grid[0]), grid[1]
    first, last = np.clip(np.rint(np.array(bounds, np.float32) / scale) + zero, 0, 255)
    return int(first), int(last)


def _set_bounds(clip: ir.Node, codes: tuple[int, int], graph: ir.Graph) -> None:
    clip.resize_inputs(3)
    for index, code in enumerate(codes, start=1):
        clip.replace_input_with(index, constant(graph, np.uint8(code)))


def scales_into_quantizers(model: ir.Model) -> None:
    """A product with a positive number in front of a quantizer divides the quantizer's scale."""
    for node in list(model.graph):
        quantizer = only_reader(node.outputs[0], "QuantizeLinear")
        if node.op_type not in ("Mul", "Div") or quantizer is None:
            continue
        x, other = node.inputs
        if node.op_type == "Mul" and number(x) is not None:
            x, other = other, x
        factor, step = number(other), step_of(quantizer)
        if factor is None or factor <= 0 or step is None:
            continue
        step = kernels.through_factor(step, factor, divides=node.op_type == "Div")
        quantizer.replace_input_with(0, x)
        quantizer.replace_input_with(1, constant(model.graph, np.float32(step.scale)))
        model.graph.remove(node, safe=True)


def keep_both_roundings(model: ir.Model) -> None:
    """Puts a Clip that clips nothing between two roundings on different grids.

    ONNX Runtime makes one of two that stand right behind each other (DoubleQDQPairsRemover), which
    gives other codes. Behind what the passes above took away they often do.
    """
    for node in list(model.graph):
        source = made_by(node.inputs[0], "DequantizeLinear") if node.inputs else None
        if node.op_type != "QuantizeLinear" or source is None or scalars(node) == scalars(source):
            continue
        first = made_by(source.inputs[0], "QuantizeLinear")
        if first is None or first.inputs[2].dtype != UINT8:  # type: ignore[union-attr]
            continue
        if only_reader(first.outputs[0], "DequantizeLinear"):
            _set_bounds(inserted("Clip", first.outputs[0], model.graph), (0, 255), model.graph)


def gates_on_integers(model: ir.Model) -> None:
    """The gate of a hardswish becomes a Clip of the codes of x, which are read on another step."""
    for node in list(model.graph):
        if node.op_type != "HardSigmoid":
            continue
        source = made_by(node.inputs[0], "DequantizeLinear")
        step = step_of(source)
        if source is None or step is None or source.inputs[2].dtype != UINT8:  # type: ignore[union-attr]
            continue
        codes, gate_step = source.inputs[0], kernels.gate_of(step)
        if codes is None or gate_step is None:
            continue
        clip = ir.node("Clip", [codes])
        _set_bounds(clip, (gate_step.zero, min(2 * step.zero - gate_step.zero, 255)), model.graph)
        clip.outputs[0].type, clip.outputs[0].shape = codes.type, node.outputs[0].shape
        scale = constant(model.graph, np.float32(gate_step.scale))
        zero = constant(model.graph, np.uint8(gate_step.zero))
        gate = ir.node("DequantizeLinear", [clip.outputs[0], scale, zero])
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [clip, gate], node.outputs, gate.outputs
        )


def quantizers_behind_products(model: ir.Model) -> None:
    """Rounds right behind a product, and then moves codes: to squares (DepthToSpace), from rows (Reshape).

    A Conv needs its quantizer there. A Gemm does without in ONNX Runtime, but OpenVINO takes the
    channels of what is in rows for positions, unless codes of one step are made sequences.
    """
    for node in list(model.graph):
        quantizer = only_reader(node.outputs[0], "QuantizeLinear")
        from_rows = node.op_type == "Reshape" and made_by(node.inputs[0], "Gemm") is not None
        if quantizer is None or not (from_rows or node.op_type == "DepthToSpace"):
            continue
        codes = ir.node("QuantizeLinear", [node.inputs[0], *quantizer.inputs[1:]])
        moved = ir.node(node.op_type, [codes.outputs[0], *node.inputs[1:]], node.attributes)
        codes.outputs[0].type = moved.outputs[0].type = quantizer.outputs[0].type
        codes.outputs[0].shape, moved.outputs[0].shape = node.inputs[0].shape, node.outputs[0].shape  # type: ignore[union-attr]
        ir.convenience.replace_nodes_and_values(
            model.graph, quantizer, [node, quantizer], [codes, moved], quantizer.outputs, moved.outputs
        )  # fmt: skip


def pads_on_integers(model: ir.Model) -> None:
    """Padding between integer tensors pads the codes; 0 is the code of the zero point."""
    for node in list(model.graph):
        if node.op_type != "Pad" or not _pads_codes(node):
            continue
        source = made_by(node.inputs[0], "DequantizeLinear")
        quantizer = only_reader(node.outputs[0], "QuantizeLinear")
        if source is None or quantizer is None or scalars(quantizer) != scalars(source):
            continue
        codes, _, zero = source.inputs
        padded = ir.node("Pad", [codes, node.inputs[1], zero, *node.inputs[3:]], node.attributes)
        padded.outputs[0].type, padded.outputs[0].shape = codes.type, node.outputs[0].shape  # type: ignore[union-attr]
        ir.convenience.replace_nodes_and_values(
            model.graph, quantizer, [node, quantizer], [padded], quantizer.outputs, padded.outputs
        )
        if not source.outputs[0].uses():
            model.graph.remove(source, safe=True)


def _pads_codes(node: ir.Node) -> bool:
    """True for padding by 0 or by values of the tensor itself."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    by_constant = node.attributes.get_string("mode", "constant") == "constant"
    return not by_constant or value is None or number(value) == 0


ONTO_INTEGERS: tuple[Pass, ...] = (
    global_average_pools,
    scales_into_quantizers,
    clip_on_integers,
    keep_both_roundings,
    gates_on_integers,
    pads_on_integers,
    quantizers_behind_products,
)
