"""Small rewrites of the exported graph, between the simplifier and packing."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from qdeploy.deploy.packing import Initialisers


def global_average_pools(model: ir.Model) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel."""
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or not _over_height_and_width(node):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if node.attributes.get_int("keepdims", 1) == 0:
            continue
        pool = ir.node("GlobalAveragePool", [source])
        pool.outputs[0].shape, pool.outputs[0].type = result.shape, result.type
        model.graph.insert_before(node, pool)
        result.replace_all_uses_with(pool.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _over_height_and_width(node: ir.Node) -> bool:
    source = node.inputs[0]
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None:
        return False
    return sorted(int(axis) % 4 for axis in axes.numpy().ravel()) == [2, 3]


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
BEFORE_PACKING: tuple[Pass, ...] = (global_average_pools, guard_float_layers, share_initialisers)
AFTER_PACKING: tuple[Pass, ...] = (share_initialisers, strip_metadata, short_names)
