"""Packs the weights of a file that is written: one of ours that a tool unpacked, or one of another tool.

Simplifiers, optimisers and ONNX Runtime's own saved graphs compute what is constant, and so undo the
packing. Here a weight goes and the nodes that make it take its name, so what reads it, also in a branch
of an If, reads on. Nothing else in the file changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import DeduplicateInitializersPass

from qdeploy.benchmark.graph import is_foreign
from qdeploy.deploy.packing import COMPUTED_AS, Codes, plan, saving, unpacked
from qdeploy.deploy.seal import Seal, seal, seal_network, state
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import files_of, read, stored_bytes, write

LOWEST_OPSET = 11  # of Range


@dataclass(frozen=True)
class Repacked:
    """A file before and after.

    before, after  bytes on the disk, with weights that lie beside it
    weights        how many were packed; 0: nothing was to gain, and nothing was written
    seal           as it was: WHOLE is sealed anew, a broken one stays broken
    unread         files with weights of the old file that the new one does not read
    """

    file: Path
    before: int
    after: int
    weights: int
    seal: Seal
    unread: tuple[Path, ...] = ()


def repack(path: Path, output: Path) -> Repacked:
    """Writes the file with its weights packed, whole or not at all; output may be the file itself.

    Errors: QdeployError for what is no ONNX file, or is of an opset below 11.
    """
    before, held_by = stored_bytes(path), files_of(path)
    in_place = output.resolve() == path.resolve()
    if not in_place and output.resolve() in {file.resolve() for file in held_by}:
        raise QdeployError(f"{output} holds weights of {path}; choose another file with -o")
    model = read(path)
    found = state(model, path.parent)
    onnx.load_external_data_for_model(model, str(path.parent))
    count = pack_weights(model)
    if not count:
        return Repacked(path, before, before, 0, found)
    if found is Seal.WHOLE:
        seal(model)
    elif found is Seal.METADATA:
        seal_network(model)
    write(model, output)
    kept = {path, *files_of(output)} if in_place else set(held_by)
    unread = tuple(file for file in held_by if file not in kept and file.exists())
    return Repacked(output, before, stored_bytes(output), count, found, unread)


def savings(model: onnx.ModelProto, folder: Path) -> int:
    """About how many bytes `pack_weights` would save. folder: where the model lies."""
    saved = 0
    for graph in _graphs(model.graph):
        arrays = list(_weights(graph, model, folder).values())
        plans = plan(arrays)
        saved += sum(saving(a, p) for a, p in zip(arrays, plans, strict=True) if p)
        saved -= sum(packing.shared_size for packing in {p for p in plans if p})
    return saved


def pack_weights(model: onnx.ModelProto) -> int:
    """Packs the weights of a model that lie in memory, in place, and says how many.

    Errors: QdeployError if there is something to pack and the model's opset is below 11.
    """
    taken = _names(model)
    free = (name for name in map("p{}".format, itertools.count()) if name not in taken)
    count = 0
    for graph in _graphs(model.graph):
        weights = _weights(graph, model, Path())
        unpacking = _unpacking(weights, free)
        if unpacking.node:
            _check(unpacking, weights, _opset(model))
            _splice(graph, unpacking)
        count += len(unpacking.output)
    if count:
        model.ir_version = max(model.ir_version, 4)  # before, constants are inputs
    return count


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those within its nodes."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("g"):
            yield from _graphs(attribute.g)
        for inner in attribute.graphs:
            yield from _graphs(inner)


def _weights(graph: onnx.GraphProto, model: onnx.ModelProto, folder: Path) -> dict[str, Codes]:
    """Codes of more than one dimension that no caller may replace and that are not packed yet."""
    values = {
        node.output[0]: attribute.t
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    values.update({tensor.name: tensor for tensor in graph.initializer})
    left_out = {value.name for value in graph.input} | _read_as_int32(model)
    return {
        name: numpy_helper.to_array(tensor, str(folder))
        for name, tensor in values.items()
        if tensor.data_type in COMPUTED_AS and len(tensor.dims) > 1 and name not in left_out
    }


def _read_as_int32(model: onnx.ModelProto) -> set[str]:
    """What is packed: bytes that are numbers, and no codes."""
    return {
        node.input[0]
        for graph in _graphs(model.graph)
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == ir.DataType.INT32
    }


def _names(model: onnx.ModelProto) -> set[str]:
    """Of all values, in all graphs."""
    names: set[str] = set()
    for graph in _graphs(model.graph):
        names.update(value.name for value in (*graph.input, *graph.output, *graph.initializer))
        names.update(tensor.values.name for tensor in graph.sparse_initializer)
        for node in graph.node:
            names.update(node.input, node.output)
    return names


def _opset(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators. Errors: QdeployError if it lacks what unpacks."""
    own = (entry.version for entry in model.opset_import if not is_foreign(entry.domain))
    opset = max(own, default=0)
    if opset < LOWEST_OPSET:
        raise QdeployError(
            f"the file is of opset {opset}, and what packing needs is there from opset {LOWEST_OPSET} on: "
            "raise it with onnx.version_converter.convert_version, then pack it"
        )
    return opset


def _unpacking(weights: Mapping[str, Codes], free: Iterator[str]) -> onnx.GraphProto:
    """A graph whose outputs are those weights that are to be packed, under their names."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": LOWEST_OPSET}, name="unpacking")
    values = [ir.val(name, const_value=ir.tensor(array)) for name, array in weights.items()]
    shared, nodes = unpacked(values, graph)
    graph.extend([*shared, *itertools.chain.from_iterable(nodes.values())])
    DeduplicateInitializersPass()(ir.Model(graph, ir_version=4))
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value in constants:
        value.name = next(free)
        graph.initializers.add(value)
    for node in graph:
        node.name, node.outputs[0].name = "", next(free)
    for weight, made in nodes.items():
        result = made[-1].outputs[0]
        result.name = weight.name
        graph.outputs.append(result)
    proto = ir.to_proto(graph)
    proto.ClearField("value_info")
    return proto


def _check(unpacking: onnx.GraphProto, weights: Mapping[str, Codes], opset: int) -> None:
    """onnx's own evaluator unpacks the very codes."""
    opsets = [onnx.helper.make_opsetid("", opset)]
    found = ReferenceEvaluator(onnx.helper.make_model(unpacking, opset_imports=opsets)).run(
        None, {}
    )
    for value, codes in zip(unpacking.output, found, strict=True):
        expected = weights[value.name]
        if codes.dtype != expected.dtype or not np.array_equal(codes, expected):
            raise QdeployError(
                f"{value.name} is not unpacked to its codes; nothing was written: please report it"
            )


def _splice(graph: onnx.GraphProto, unpacking: onnx.GraphProto) -> None:
    """Puts what makes the weights where they were."""
    made = {value.name for value in unpacking.output}
    nodes = [
        node for node in graph.node if node.op_type != "Constant" or node.output[0] not in made
    ]
    initialisers = [tensor for tensor in graph.initializer if tensor.name not in made]
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*unpacking.node, *nodes])
    graph.initializer.extend([*initialisers, *unpacking.initializer])
