"""What nodes and values of a file are called: after the network's modules, or in as few letters as can be.

On the way to the file a product is called after the module that holds its weight, and an activation's
DequantizeLinear as the converted network calls its quantizer. In the end everything gets a name.
"""

from __future__ import annotations

import ast
import itertools
import string
from collections import Counter
from collections.abc import Container, Iterator, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qdeploy.onnx_file import RECURRENT

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
LAYERS = PRODUCTS | RECURRENT | {"Gather"}
TENSOR = "qdeploy.tensor"

# Of a layer's inputs, those that there is a word for, the weight first.
PARTS = {1: "weight", 2: "bias"}
OTHER_PARTS = {"Gather": {0: "weight"}, **{op: {1: "ih", 2: "hh", 3: "bias"} for op in RECURRENT}}

# Readable names may make a file larger by this share of its weights.
AFFORDABLE = 0.01


def layer_names(model: ir.Model) -> None:
    """A product is called after the module that holds its weight, the second one "fc (2)"; an activation
    as `tensor_names` noted.

    Precondition: weights are still called "layers.0.conv1.weight"; other products get no name.
    torch.onnx merges equal weights, so a weight that was met before may be another module's.
    """
    seen: Counter[str] = Counter()
    for node in model.graph:
        module = _holder_of_weight(node) if node.op_type in LAYERS else ""
        caller = _caller(node)
        if module and seen[module] and caller and not f"{module}.".startswith(f"{caller}."):
            module = caller
        seen[module] += 1
        name = f"{module} ({seen[module]})" if module and seen[module] > 1 else module
        node.name = node.metadata_props.get(TENSOR, name)


def tensor_names(model: ir.Model, names: Sequence[str]) -> None:
    """Notes at each DequantizeLinear of an activation what the converted network calls its quantizer.

    names   of the quantizers, in the order that the network runs them. Precondition: the graph is not
            optimised yet, so it has them all, in that order.
    """
    activations = [node for node in model.graph if _is_activation(node)]
    for node, name in zip(activations, names, strict=True):
        node.metadata_props[TENSOR] = name


def name_all(model: ir.Model, readable: bool) -> dict[str, str]:
    """Gives everything its last name, in place; {the converted network's quantizer: the tensor of its codes}.

    readable    after the modules whatever that costs; else only where weights are large beside the names
    """
    own = _own_names(model.graph)
    activations = {name: node for node, name in own.items() if node.op_type == "DequantizeLinear"}
    readable_names(model)
    if not readable and _bytes_of_names(model) > AFFORDABLE * _bytes_of_weights(model):
        short_names(model, own)
    return {name: str(node.inputs[0].name) for name, node in activations.items()}  # type: ignore[union-attr]


def readable_names(model: ir.Model) -> None:
    """A node is called after its layer, a value after the node that makes it, a constant after its reader.

    So "layer1.0.conv1.weight.DequantizeLinear.x_scale" is the scale of that convolution's weight.
    """
    values = _names_that_stay(model.graph)
    nodes: set[str] = set()
    for node, name in _owned(model.graph):
        node.name = _free(name, nodes)
        for place, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = _free(node.name if place == 0 else f"{node.name}.{place}", values)
    _name_constants(model, values)


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is taken from now on."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    found = next(one for one in itertools.chain([name], numbered) if one not in taken)
    taken.add(found)
    return found


def short_names(model: ir.Model, own: Container[ir.Node] = ()) -> None:
    """Values get one to three letters. Inputs, outputs and layers keep their names, other nodes have none.

    own   the nodes that have a name of their own; products have one anyway
    """
    graph = model.graph
    kept = _names_that_stay(graph)
    names = (name for name in _letters() if name not in kept)
    _rename_constants(graph, names)
    for node in graph:
        if node.op_type not in PRODUCTS and not (node.op_type in LAYERS and node in own):
            node.name = ""
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = next(names)


def _owned(graph: ir.Graph) -> Iterator[tuple[ir.Node, str]]:
    """Each node with its name: a layer's or an activation's own, else "the last one before it.Operator"."""
    constant, own = _constant_nodes(graph), _own_names(graph)
    owners: dict[ir.Node, str] = {}
    for node in graph:
        if node not in constant:
            makers = [v.producer() for v in node.inputs if v is not None]
            before = next((m for m in makers if m is not None and m not in constant), None)
            owners[node] = own.get(node) or (owners[before] if before is not None else "")
    for node in reversed(graph):
        if node in constant:
            owners[node] = _read_by(node, {**owners, **own})
    for node in graph:
        yield node, own.get(node) or f"{owners[node]}.{node.op_type}".lstrip(".")


def _own_names(graph: ir.Graph) -> dict[ir.Node, str]:
    """Those of products and of activations; other nodes have names of the exporter.

    Of what is computed at load only rows of a layer's table, the same in every run, have such a name.
    """
    constant = _constant_nodes(graph)
    return {
        node: node.name
        for node in graph
        if node.name
        and (
            _is_lookup(node, constant)
            if node.op_type == "Gather"
            else node not in constant and node.op_type in LAYERS | {"DequantizeLinear"}
        )
    }


def _is_lookup(node: ir.Node, constant: Container[ir.Node]) -> bool:
    """Whether it looks up rows of a layer's table: no scales of rows, and nothing that unpacks codes."""
    table = node.inputs[0]
    shape = None if table is None else table.shape
    if table is None or shape is None or len(shape) != 2 or shape[1] == 1:
        return False
    return table.dtype == ir.DataType.FLOAT or node not in constant


def _read_by(node: ir.Node, owners: dict[ir.Node, str]) -> str:
    """ "conv1.weight", or whom else what is made of constants is for."""
    use = next(iter(node.outputs[0].uses()), None)
    if use is None:
        return ""
    part = parts_of(use.node.op_type).get(use.idx, "")
    return f"{owners.get(use.node, '')}.{part}".strip(".")


def _constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Those that read constants alone, and are computed once, at load."""
    found: set[ir.Node] = set()
    for node in graph:
        makers = [
            value.producer()
            for value in node.inputs
            if value is not None and not value.is_initializer()
        ]
        if all(maker in found for maker in makers):
            found.add(node)
    return found


def _name_constants(model: ir.Model, taken: set[str]) -> None:
    names: list[str] = []
    for value in model.graph.initializers.values():
        if value.is_graph_output():
            continue
        reader, place = next(use for use in value.uses() if use.node.graph is not None)
        formal = onnx.defs.get_schema(reader.op_type, model.opset_imports[""]).inputs
        name = f"{reader.name}.{formal[min(place, len(formal) - 1)].name}"
        names.append(_free(name, taken))
    _rename_constants(model.graph, iter(names))


def _rename_constants(graph: ir.Graph, names: Iterator[str]) -> None:
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value in constants:
        value.name = value.name if value.is_graph_output() else next(names)
        graph.initializers.add(value)


def _names_that_stay(graph: ir.Graph) -> set[str]:
    """Those of inputs and outputs, and of what branches compute, which see the graph's values."""
    inner = (node for node in RecursiveGraphIterator(graph) if node.graph is not graph)
    values = itertools.chain(graph.inputs, graph.outputs, *(node.outputs for node in inner))
    return {str(value.name) for value in values}


def _bytes_of_names(model: ir.Model) -> int:
    """In the file, where a value's name stands at its maker and at each reader."""
    values = (v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None)
    constants = model.graph.initializers.values()
    named = (*values, *constants, *model.graph)
    return sum(len(str(one.name or "")) for one in named)


def _bytes_of_weights(model: ir.Model) -> int:
    held = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _is_activation(node: ir.Node) -> bool:
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    return codes is not None and codes.producer() is not None


def _holder_of_weight(product: ir.Node) -> str:
    """The module whose parameter the weight is, or that holds those of a recurrence; "" if it is none."""
    weight = product.inputs[min(parts_of(product.op_type))]
    while weight is not None and (maker := weight.producer()) is not None:
        weight = maker.inputs[0] if maker.inputs else None
    module = (weight.name or "").rpartition(".")[0] if weight is not None else ""
    return module.rpartition(".")[0] if product.op_type in RECURRENT else module


def parts_of(operator: str) -> dict[int, str]:
    """The inputs of a layer's operator that there is a word for; none of another operator."""
    return OTHER_PARTS.get(operator, PARTS) if operator in LAYERS else {}


def _caller(node: ir.Node) -> str:
    """The module that called an operator, as torch.onnx notes it; "" for the network itself."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return scopes[-2] if len(scopes) > 1 else ""


def _letters() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
