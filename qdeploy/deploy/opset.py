"""The lowest opset that a graph needs, so that runtimes which are years old read it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx.defs import OpSchema, SchemaError, get_schema

# Since 13 an axis of QuantizeLinear and DequantizeLinear is a channel.
LOWEST = 13

# Where a version took on another meaning, or other values of an attribute, in the same form.
MEANING_SINCE = {"GridSample": 20, "GroupNormalization": 21, "RoiAlign": 16}
VALUE_SINCE = {b"half_pixel_symmetric": 19, b"max": 18, b"min": 18, b"wrap": 19}


def lower_opset(model: onnx.ModelProto) -> None:
    """Gives a model the lowest opset in which its nodes mean what they mean, and the IR of that, in place.

    Precondition: the model is valid, and its weights are in memory.
    """
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = dict(_types(inferred.graph))
    nodes = list(_nodes(inferred.graph))
    opset = next(entry for entry in model.opset_import if not entry.domain)
    highest = opset.version
    opset.version = next(
        version
        for version in range(min(LOWEST, highest), highest + 1)
        if all(_fits(node, version, highest, types) for node in nodes)
    )
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def _fits(node: onnx.NodeProto, version: int, today: int, types: dict[str, str]) -> bool:
    """Whether a node of opset `today` means the same in `version`."""
    if node.domain or version == today:
        return True
    try:
        then, now = (get_schema(node.op_type, v) for v in (version, today))
    except SchemaError:
        return False
    values = [attribute.s for attribute in node.attribute]
    since = max(MEANING_SINCE.get(node.op_type, 0), *(VALUE_SINCE.get(v, 0) for v in values), 0)
    return (
        version >= since
        and not then.deprecated
        and _has_attributes(node, then, now)
        and _takes(then.inputs, node.input, then, types)
        and _takes(then.outputs, node.output, then, types)
    )


def _has_attributes(node: onnx.NodeProto, then: OpSchema, now: OpSchema) -> bool:
    """Whether the version has the node's attributes, and the same values for those that it leaves out."""
    given = {attribute.name for attribute in node.attribute}
    left_out = (set(then.attributes) & set(now.attributes)) - given
    same = all(
        then.attributes[name].default_value == now.attributes[name].default_value
        for name in left_out
    )
    return given <= set(then.attributes) and same


def _takes(
    formal: Sequence[OpSchema.FormalParameter],
    names: Sequence[str],
    schema: OpSchema,
    types: dict[str, str],
) -> bool:
    """Whether the version has this many inputs, or outputs, of these types."""
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    variadic = bool(formal) and formal[-1].option == OpSchema.FormalParameterOption.Variadic
    if len(names) > len(formal) and not variadic:
        return False
    for place, name in enumerate(names):
        kind = formal[min(place, len(formal) - 1)].type_str
        if name in types and types[name] not in allowed.get(kind, [kind]):
            return False
    return True


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Of the graph and of those inside of its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """The name and type of each tensor, such as tensor(uint8)."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name, _type_text(value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        yield tensor.name, _type_text(tensor.data_type)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _types(inner)


def _type_text(kind: int) -> str:
    return f"tensor({onnx.TensorProto.DataType.Name(kind).lower()})"
