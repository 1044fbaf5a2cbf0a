"""OpenVINO, a second runtime for the same file: the graph as it runs it best, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qdeploy.benchmark.runtime import Array, Images
from qdeploy.deploy.edits import constant, made_by, only_reader
from qdeploy.deploy.target import Target
from qdeploy.deploy.targets import cpu
from qdeploy.errors import QdeployError
from qdeploy.record import Record

UINT8 = ir.DataType.UINT8


def rewrite(model: ir.Model) -> None:
    count_by_size(model)
    with_float_gates(model)
    cpu.rewrite(model)
    keep_rounding_of_branches(model)


def count_by_size(model: ir.Model) -> None:
    """Divides the size of an input where a Shape tells an open length of it, such as the batch's, in place.

    OpenVINO asks the first convolution in place of what the Shape reads. That convolution then has
    two readers and keeps its bias apart, and with open lengths the rounding behind it adds the first
    channel's bias to all channels. In a quotient it does not recognise the length.
    """
    for node in list(model.graph):
        if node.op_type == "Shape" and (lengths := _lengths(node, model.graph)):
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], lengths, node.outputs, lengths[-1].outputs
            )


def _lengths(node: ir.Node, graph: ir.Graph) -> list[ir.Node]:
    """Operators whose last one gives what a Shape gives; none if a length is that of no input."""
    start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
    lengths = list(node.inputs[0].shape or ())[start:end]  # type: ignore[union-attr]
    nodes: list[ir.Node] = []
    parts: list[ir.Value] = []
    for length in lengths:
        if isinstance(length, int):
            parts.append(constant(graph, np.array([length])))
            continue
        counted = _counted(length, graph)
        if not counted:
            return []
        nodes += counted
        parts.append(counted[-1].outputs[0])
    return [*nodes, ir.node("Concat", parts, {"axis": 0})] if len(parts) > 1 else nodes


def _counted(length: ir.SymbolicDim, graph: ir.Graph) -> list[ir.Node]:
    """How many values an input with this length has for each of those at its first place there."""
    for value in graph.inputs:
        sizes = list(value.shape or ())
        if length not in sizes:
            continue
        whole = ir.node("Size", [value])
        if len([n for n in sizes if not isinstance(n, int)]) == 1:
            rest = np.prod([n for n in sizes if isinstance(n, int)], dtype=np.int64)
            parts, count = [whole], constant(graph, rest.reshape(1))
        else:
            bounds = ([0], [1], [sizes.index(length)])
            first = ir.node("Slice", [value, *(constant(graph, np.array(one)) for one in bounds)])
            parts = [whole, first, ir.node("Size", [first.outputs[0]])]
            # A quotient of two scalars; the Shape gave a list.
            parts.append(
                ir.node("Unsqueeze", [parts[-1].outputs[0], constant(graph, np.array([0]))])
            )
            count = parts[-1].outputs[0]
        return [*parts, ir.node("Div", [whole.outputs[0], count])]
    return []


def with_float_gates(model: ir.Model) -> None:
    """Takes away the 8-bit rounding of what a sigmoid reads and of what it gives, in place.

    OpenVINO computes a SiLU and its product in the convolution in front of it, if no rounding
    stands in between; ONNX Runtime needs codes there. What is left out only made values coarser.

    Precondition: quantizers as operators.py writes them, before other passes touch their codes.
    """
    for quantizer in list(model.graph):
        if quantizer.op_type != "QuantizeLinear":
            continue
        reader = only_reader(quantizer.outputs[0], "DequantizeLinear")
        if reader is None:
            continue  # fewer bits: their bounds are part of what was trained
        value = reader.outputs[0]
        if value.is_graph_output():
            continue
        maker = quantizer.inputs[0].producer()  # type: ignore[union-attr]
        made_by_sigmoid = maker is not None and maker.op_type == "Sigmoid"
        kinds = {use.node.op_type for use in value.uses()}
        if made_by_sigmoid or ("Sigmoid" in kinds and kinds <= {"Sigmoid", "Mul"}):
            value.replace_all_uses_with(quantizer.inputs[0])  # type: ignore[arg-type]
            model.graph.remove([reader, quantizer], safe=True)


def keep_rounding_of_branches(model: ir.Model) -> None:
    """Puts a Max that changes no code between a convolution's codes and an Add, in place.

    OpenVINO's CPU plugin adds inside of the convolution, and where another rounding follows, it
    leaves out the one in front of the Add ("drop rounding one special residual pattern" in its
    dnnl_postops_composer_legacy.cpp). With few bits behind it other codes follow by the hundred. It
    does not add there through a Max of codes; convolution and Add stay integer in both runtimes.
    """
    for add in list(model.graph):
        branches = {made_by(value, "DequantizeLinear") for value in add.inputs}
        for branch in branches if add.op_type == "Add" else ():
            if branch is None or not _alone_reads_a_convolution(branch):
                continue
            codes = branch.inputs[0]
            assert codes is not None
            same = ir.node("Max", [codes, constant(model.graph, np.uint8(0))])
            same.outputs[0].type, same.outputs[0].shape = codes.type, codes.shape
            model.graph.insert_before(branch, same)
            branch.replace_input_with(0, same.outputs[0])


def _alone_reads_a_convolution(branch: ir.Node) -> bool:
    """Whether a DequantizeLinear reads the uint8 codes of a convolution that nothing else reads."""
    value: ir.Value | None = branch.outputs[0]
    while value is not None and len(value.uses()) == 1 and (maker := value.producer()):
        if maker.op_type == "Conv":
            return branch.inputs[0].dtype == UINT8  # type: ignore[union-attr]
        if maker.op_type not in ("DequantizeLinear", "Clip", "QuantizeLinear"):
            return False
        value = maker.inputs[0]
    return False


def load(model: Path) -> tuple[str, Callable[..., list[Array]]]:
    """OpenVINO's name with its version, and a function from the file's inputs to its outputs.

    On the CPU; what is not quantized is computed in float32, also where the processor has
    narrower floats. Raises QdeployError if OpenVINO is missing, or cannot read or run the file.
    """
    try:
        openvino = import_module("openvino")
    except ImportError:
        raise QdeployError(
            "target openvino checks the file with OpenVINO, which is not installed: "
            'pip install "qdeploy[openvino]", or export with --target cpu, which OpenVINO reads as well'
        ) from None
    try:
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise QdeployError(f"OpenVINO cannot read {model}: {error}") from error
    version = openvino.__version__.partition("-")[0]

    def run(*inputs: Images) -> list[Array]:
        try:
            return list(compiled(inputs).values())
        except RuntimeError as error:
            raise QdeployError(f"OpenVINO {version} cannot run {model}: {error}") from error

    return f"OpenVINO {version}", run


def advice(record: Record) -> Iterator[str]:
    """Which gates ONNX Runtime, whose latency the report has, computes in float for OpenVINO's sake."""
    placed = record.placement
    kinds = (placed and placed.operators) or {}
    in_float = sum(n for kind, n in kinds.items() if kind.rpartition("::")[2] == "Sigmoid")
    if in_float:
        yield (
            f"{in_float} sigmoids are left in float: OpenVINO computes them inside of the "
            "convolution in front. On ONNX Runtime, whose latency this is, that is slower."
        )


TARGET = Target(
    rewrite=rewrite,
    in_rows=False,
    load=load,
    advice=advice,
    accelerator='cpu_execution_accelerator [ { name: "openvino" } ]',
)
