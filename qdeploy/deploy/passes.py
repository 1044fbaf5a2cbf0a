"""Small rewrites of the exported graph, between the simplifier and packing."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qdeploy.deploy.packing import Initialisers


def global_average_pools(model: ir.Model) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel."""
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or not _over_height_and_width(node):
            continue
        pool = ir.node("GlobalAveragePool", [node.inputs[0]])
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [pool], node.outputs, pool.outputs
        )
        if node.attributes.get_int("keepdims", 1) == 0:
            _flatten(pool, model.graph)


def _flatten(pool: ir.Node, graph: ir.Graph) -> None:
    """Drops height and width; behind the quantizer, which must stand right behind the pool."""
    quantizer = _only_reader(pool.outputs[0], "QuantizeLinear")
    source = (quantizer or pool).outputs[0]
    flatten = ir.node("Flatten", [source])
    result = flatten.outputs[0]
    result.type, result.shape = source.type, source.shape
    source.replace_all_uses_with(result, replace_graph_outputs=True)
    flatten.replace_input_with(0, source)
    source.shape = None
    graph.insert_after(quantizer or pool, flatten)


def _over_height_and_width(node: ir.Node) -> bool:
    source = node.inputs[0]
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None:
        return False
    return sorted(int(axis) % 4 for axis in axes.numpy().ravel()) == [2, 3]


def drop_saturated_clips(model: ir.Model) -> None:
    """A float Clip goes where the quantizer behind it saturates no later: ReLU6 before k bits.

    ONNX Runtime drops such a Clip itself, but looks only at the 8 bits of QuantizeLinear and
    not at the integer Clip that makes k bits of them. A float Clip keeps the Conv float.
    """
    for node in list(model.graph):
        if node.op_type != "Clip":
            continue
        quantizer = _only_reader(node.outputs[0], "QuantizeLinear")
        clip = quantizer and _only_reader(quantizer.outputs[0], "Clip")
        if quantizer and clip and _saturates(node, quantizer, clip):
            node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
            model.graph.remove(node, safe=True)


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The operator of this type that alone reads the value."""
    readers = [use.node for use in value.uses()]
    only = len(readers) == 1 and not value.is_graph_output() and readers[0].op_type == op_type
    return readers[0] if only else None


def _scalars(node: ir.Node) -> npt.NDArray[np.float32] | None:
    """The two constants behind the first input; None where they are not two scalar constants."""
    constants = [value.const_value if value else None for value in node.inputs[1:]]
    arrays = [constant.numpy() for constant in constants if constant is not None]
    scalar = [array.size for array in arrays] == [1, 1]
    return np.array(arrays, np.float32).ravel() if scalar else None


def _saturates(clip: ir.Node, quantizer: ir.Node, codes: ir.Node) -> bool:
    """True if rounding onto the codes does all that clipping does."""
    bounds, grid, ends = map(_scalars, (clip, quantizer, codes))
    if bounds is None or grid is None or ends is None:
        return False
    scale, zero = grid
    rounded = np.rint(bounds / scale) + zero
    return bool(rounded[0] <= ends[0] and rounded[1] >= ends[1])


def guard_float_layers(model: ir.Model) -> None:
    """Keeps float Conv and Gemm float where they stand between integer tensors.

    ONNX Runtime quantizes the float weight of a layer that reads a dequantized tensor and whose
    output is quantized again (WeightBiasQuantization, since 1.21). A Max with the smallest float
    in between changes no value and breaks that pattern.
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
    return weight is not None and weight.is_initializer()


def share_initialisers(model: ir.Model) -> None:
    """Equal constants are stored once."""
    known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        assert value.const_value is not None
        array = value.const_value.numpy()
        first = known.setdefault((array.dtype.name, array.shape, array.tobytes()), value)
        if first is not value and not value.is_graph_output():
            value.replace_all_uses_with(first)
            del model.graph.initializers[name]


def short_names(model: ir.Model) -> None:
    """Values get names of one to three letters, nodes none; inputs and outputs keep theirs."""
    graph = model.graph
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    names = (name for name in _letters() if name not in kept)
    initialisers = list(graph.initializers.values())
    graph.initializers.clear()
    for value in initialisers:
        value.name = next(names)
        graph.initializers.add(value)
    for node in graph:
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


Pass = Callable[[ir.Model], None]
BEFORE_PACKING: tuple[Pass, ...] = (
    global_average_pools,
    drop_saturated_clips,
    guard_float_layers,
    share_initialisers,
)
AFTER_PACKING: tuple[Pass, ...] = (share_initialisers, strip_metadata, short_names)
