"""Small rewrites of the exported graph, between the simplifier and packing."""

from __future__ import annotations

import itertools
import math
import string
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir

from qdeploy.deploy.packing import Initialisers

UINT8 = ir.DataType.UINT8
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def layer_names(model: ir.Model) -> None:
    """A product is called after the module that holds its weight, the second one "fc (2)".

    Precondition: weights are still called "layers.0.conv1.weight"; other products get no name.
    """
    seen: Counter[str] = Counter()
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in PRODUCTS else None
        while weight is not None and (maker := weight.producer()) is not None:
            weight = maker.inputs[0] if maker.inputs else None
        module = (weight.name or "").rpartition(".")[0] if weight is not None else ""
        seen[module] += 1
        node.name = f"{module} ({seen[module]})" if module and seen[module] > 1 else module


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
            quantizer = _only_reader(pool.outputs[0], "QuantizeLinear")
            _inserted("Flatten", (quantizer or pool).outputs[0], model.graph)
            pool.outputs[0].shape = None


def _over_height_and_width(node: ir.Node) -> bool:
    source = node.inputs[0]
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None:
        return False
    return sorted(int(axis) % 4 for axis in axes.numpy().ravel()) == [2, 3]


def _is_too_fine(pool: ir.Node) -> bool:
    """True where the output's steps are 256 times finer than the input's, as for a sign.

    ONNX Runtime's QLinearGlobalAveragePool fails there ("out of computation range").
    """
    quantizer = _only_reader(pool.outputs[0], "QuantizeLinear")
    source = pool.inputs[0].producer() if pool.inputs[0] else None
    if quantizer is None or source is None or source.op_type != "DequantizeLinear":
        return False
    return _scalars(quantizer)[0] * 256 <= _scalars(source)[0]


def clip_on_integers(model: ir.Model) -> None:
    """A Relu or Clip in front of a quantizer becomes a Clip of its codes, or goes where they end.

    Rounding is monotonous, so the values are the same. ONNX Runtime keeps a Conv float if a Relu
    or Clip stands between it and its quantizer that does not end where the 8 bits end: ReLU6
    before k bits, or any with a zero point in the middle.
    """
    initialisers = Initialisers(model.graph)
    for node in list(model.graph):
        quantizer = _only_reader(node.outputs[0], "QuantizeLinear")
        if quantizer is None or (codes := _clipped_codes(node, quantizer)) is None:
            continue
        node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
        model.graph.remove(node, safe=True)
        clip = _only_reader(quantizer.outputs[0], "Clip")
        if clip is not None:
            first, last = _scalars(clip)
            codes = max(codes[0], int(first)), min(codes[1], int(last))
            _set_bounds(clip, codes, initialisers)
        elif codes != (0, 255):
            clip = _inserted("Clip", quantizer.outputs[0], model.graph)
            _set_bounds(clip, codes, initialisers)


def _clipped_codes(node: ir.Node, quantizer: ir.Node) -> tuple[int, int] | None:
    """The uint8 codes of the bounds of a Relu or Clip; None for other operators."""
    if node.op_type not in ("Relu", "Clip"):
        return None
    bounds = _scalars(node) if node.op_type == "Clip" else [0, math.inf]
    grid = _scalars(quantizer)
    if len(bounds) != 2 or len(grid) != 2 or quantizer.inputs[2].dtype != UINT8:  # type: ignore[union-attr]
        return None
    scale, zero = np.float32(grid[0]), grid[1]
    first, last = np.clip(np.rint(np.array(bounds, np.float32) / scale) + zero, 0, 255)
    return int(first), int(last)


def _scalars(node: ir.Node) -> list[float]:
    """The scalar constants behind the first input."""
    constants = [value.const_value for value in node.inputs[1:] if value and value.const_value]
    return [constant.numpy().item() for constant in constants if constant.size == 1]


def _producer(node: ir.Node) -> ir.Node | None:
    """The operator that makes the first input."""
    return node.inputs[0].producer() if node.inputs[0] is not None else None


def _set_bounds(clip: ir.Node, codes: tuple[int, int], initialisers: Initialisers) -> None:
    clip.resize_inputs(3)
    for index, code in enumerate(codes, start=1):
        clip.replace_input_with(index, initialisers.constant(np.uint8(code)))


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The operator of this type that alone reads the value."""
    readers = [use.node for use in value.uses()]
    only = len(readers) == 1 and not value.is_graph_output() and readers[0].op_type == op_type
    return readers[0] if only else None


def _inserted(op_type: str, source: ir.Value, graph: ir.Graph) -> ir.Node:
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


def scales_into_quantizers(model: ir.Model) -> None:
    """A product with a positive number in front of a quantizer divides the quantizer's scale."""
    initialisers = Initialisers(model.graph)
    for node in list(model.graph):
        quantizer = _only_reader(node.outputs[0], "QuantizeLinear")
        if node.op_type not in ("Mul", "Div") or quantizer is None:
            continue
        x, number = node.inputs
        if node.op_type == "Mul" and _number(x) is not None:
            x, number = number, x
        factor = _number(number)
        if factor is None or factor <= 0 or len(_scalars(quantizer)) != 2:
            continue
        scale = _scalars(quantizer)[0]
        scale = scale / factor if node.op_type == "Mul" else scale * factor
        quantizer.replace_input_with(0, x)
        quantizer.replace_input_with(1, initialisers.constant(np.float32(scale)))
        model.graph.remove(node, safe=True)


def _number(value: ir.Value | None) -> float | None:
    constant = value.const_value if value is not None else None
    return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None


def gates_on_integers(model: ir.Model) -> None:
    """The gate of a hardswish, clamp(x / 6 + 1/2, 0, 1), becomes a Clip of the codes of x.

    Read on their own scale / 6 and from their own zero, the clipped codes are the gate: with
    k = 3 / scale a whole number, (code - (zero - k)) * scale / 6 = x / 6 + 1/2.
    """
    initialisers = Initialisers(model.graph)
    for node in list(model.graph):
        source = _producer(node) if node.op_type == "HardSigmoid" else None
        if source is None or source.op_type != "DequantizeLinear" or len(_scalars(source)) != 2:
            continue
        scale, zero = _scalars(source)
        steps = round(3 / scale)
        if abs(3 / scale - steps) > 1e-3 or zero < steps or source.inputs[2].dtype != UINT8:  # type: ignore[union-attr]
            continue
        first, last = int(zero) - steps, min(int(zero) + steps, 255)
        clip = ir.node("Clip", [source.inputs[0]])
        _set_bounds(clip, (first, last), initialisers)
        clip.outputs[0].type, clip.outputs[0].shape = source.inputs[0].type, node.outputs[0].shape  # type: ignore[union-attr]
        sixth = initialisers.constant(np.float32(scale / 6))
        gate = ir.node(
            "DequantizeLinear", [clip.outputs[0], sixth, initialisers.constant(np.uint8(first))]
        )
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [clip, gate], node.outputs, gate.outputs
        )


def quantizers_before_squares(model: ir.Model) -> None:
    """Rounds before DepthToSpace, which then moves codes: a Conv needs its quantizer right behind it."""
    for node in list(model.graph):
        quantizer = _only_reader(node.outputs[0], "QuantizeLinear")
        if node.op_type != "DepthToSpace" or quantizer is None:
            continue
        codes = ir.node("QuantizeLinear", [node.inputs[0], *quantizer.inputs[1:]])
        moved = ir.node("DepthToSpace", [codes.outputs[0]], node.attributes)
        moved.outputs[0].type = quantizer.outputs[0].type
        ir.convenience.replace_nodes_and_values(
            model.graph, quantizer, [node, quantizer], [codes, moved], quantizer.outputs, moved.outputs
        )  # fmt: skip


def pads_on_integers(model: ir.Model) -> None:
    """Padding between integer tensors pads the codes; 0 is the code of the zero point."""
    for node in list(model.graph):
        source = _producer(node) if node.op_type == "Pad" else None
        quantizer = _only_reader(node.outputs[0], "QuantizeLinear")
        if source is None or source.op_type != "DequantizeLinear" or quantizer is None:
            continue
        if not _pads_codes(node) or _scalars(quantizer) != _scalars(source):
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
    return not by_constant or value is None or _number(value) == 0


def unfold_float_weights(model: ir.Model) -> None:
    """Reads weights that meet no 8-bit codes by Cast and Mul, which the runtime computes once, at load.

    Weights of 16 bits, and those beside activations of 16 bits or in float: no integer kernel
    takes them, and a DequantizeLinear would be computed again in every run.
    """
    initialisers = Initialisers(model.graph)
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or not _is_float_weight(node):
            continue
        codes, scale, zero = node.inputs
        column = (-1, *[1] * (len(codes.shape) - 1))  # type: ignore[union-attr, arg-type]
        nodes = [ir.node("Cast", [codes], {"to": ir.DataType.FLOAT})]
        for op_type, value in (("Sub", zero), ("Mul", scale)):
            array = value.const_value.numpy().astype(np.float32).reshape(column)  # type: ignore[union-attr]
            if op_type == "Mul" or array.any():
                operand = initialisers.constant(array)
                nodes.append(ir.node(op_type, [nodes[-1].outputs[0], operand]))
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs
        )


def _is_float_weight(node: ir.Node) -> bool:
    codes = node.inputs[0]
    if codes is None or not codes.is_initializer() or codes.dtype == ir.DataType.INT32:
        return False
    return codes.dtype == ir.DataType.INT16 or not all(map(_reads_8_bits, _layers_behind(node)))


def _layers_behind(weight: ir.Node) -> Iterator[ir.Node]:
    """What computes with a weight, also where it is turned first."""
    for use in weight.outputs[0].uses():
        if use.node.op_type in ("Transpose", "Reshape"):
            yield from _layers_behind(use.node)
        else:
            yield use.node


def _reads_8_bits(layer: ir.Node) -> bool:
    """Whether 8-bit codes meet the weight there; no integer kernel transposes a convolution."""
    if layer.op_type == "ConvTranspose":
        return False
    makers = [_maker(value) for value in layer.inputs]
    zeros = [m.inputs[2:] for m in makers if m is not None and m.op_type == "DequantizeLinear"]
    return any(zero[0].dtype == UINT8 for zero in zeros if zero and zero[0])


def _maker(value: ir.Value | None) -> ir.Node | None:
    """What computes the value, but for its shape."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Reshape", "Flatten", "Transpose"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def guard_float_layers(model: ir.Model) -> None:
    """Keeps float Conv and Gemm float where they stand between integer tensors.

    ONNX Runtime quantizes the float weight of a layer that reads a dequantized tensor and whose
    output is quantized again (WeightBiasQuantization, since 1.21). A Max with the smallest float
    in between changes no value and breaks that pattern. Weights of 16 bits are float there.
    """
    initialisers = Initialisers(model.graph)
    for node in list(model.graph):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not _has_float_weight(node):
            continue
        producer = node.inputs[0].producer() if node.inputs[0] else None
        if producer is None or producer.op_type != "DequantizeLinear":
            continue
        lowest = initialisers.constant(np.float32(np.finfo(np.float32).min))
        guard = ir.node("Max", [node.inputs[0], lowest])
        model.graph.insert_before(node, guard)
        node.replace_input_with(0, guard.outputs[0])


def _has_float_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if weight is None:
        return False
    producer = weight.producer()
    while producer is not None and producer.op_type in ("Transpose", "Reshape"):
        weight = producer.inputs[0]
        producer = weight.producer()  # type: ignore[union-attr]
    assert weight is not None
    return weight.is_initializer() or (producer is not None and producer.op_type == "Mul")


def share_initialisers(model: ir.Model) -> None:
    """Equal constants are stored once, unused ones not at all."""
    known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        assert value.const_value is not None
        if value.is_graph_output():
            continue
        array = value.const_value.numpy()
        if value.uses():
            first = known.setdefault((array.dtype.name, array.shape, array.tobytes()), value)
            if first is not value:
                value.replace_all_uses_with(first)
        if not value.uses():
            del model.graph.initializers[name]


def short_names(model: ir.Model) -> None:
    """Values get names of one to three letters; inputs, outputs and products keep theirs."""
    graph = model.graph
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    names = (name for name in _letters() if name not in kept)
    initialisers = list(graph.initializers.values())
    graph.initializers.clear()
    for value in initialisers:
        value.name = next(names)
        graph.initializers.add(value)
    for node in graph:
        if node.op_type not in PRODUCTS:
            node.name = ""
        for value in node.outputs:
            if value.name not in kept or not value.is_graph_output():
                value.name = next(names)


def _letters() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)


def strip_metadata(model: ir.Model) -> None:
    """Drops what the exporter notes for debugging: about 150 KB for a ResNet-18."""
    for holder in (model, model.graph, *model.graph, *model.functions.values()):
        holder.metadata_props.clear()
        holder.doc_string = None
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in kept:
                value.shape, value.type = None, None


def drop_default_attributes(model: ir.Model) -> None:
    """Drops attributes that only repeat the default of their operator."""
    for node in model.graph:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports[""])
        for name, attribute in list(node.attributes.items()):
            default = schema.attributes[name].default_value
            if default.name and ir.serde.deserialize_attribute(default) == attribute:
                del node.attributes[name]


Pass = Callable[[ir.Model], None]
BEFORE_PACKING: tuple[Pass, ...] = (
    global_average_pools,
    scales_into_quantizers,
    clip_on_integers,
    gates_on_integers,
    pads_on_integers,
    quantizers_before_squares,
    unfold_float_weights,
    guard_float_layers,
    share_initialisers,
)
AFTER_PACKING: tuple[Pass, ...] = (
    share_initialisers,
    drop_default_attributes,
    strip_metadata,
    short_names,
)
