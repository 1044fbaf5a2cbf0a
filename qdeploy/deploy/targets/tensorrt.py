"""The graph as TensorRT's ONNX parser takes it: signed codes around zero, float biases.

TensorRT quantizes symmetrically. Its parser refuses a zero point other than 0, codes that are
neither int8 nor narrower, int32 biases behind a DequantizeLinear, and operators on codes between
QuantizeLinear and DequantizeLinear (NVIDIA, "Explicit Quantization", and onnx-tensorrt's
importers). So:

- An activation's codes become int8, less their zero point. Where they then reach from -128 to 127
  at most, the step stays and the values are those of training, bit for bit: symmetric ranges, and
  7 bits of what is never negative. Elsewhere the step grows until the larger side of the range
  ends at 127 (or -128); up to one bit is lost.
- Bounds of fewer bits, and signs, are taken of float values, in front of the quantizer.
- A weight's zero point is taken off its codes. A bias becomes the float that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qdeploy.deploy.edits import constant, made_by, only_reader
from qdeploy.deploy.passes import guard_float_layers, share_initialisers
from qdeploy.deploy.symmetric import HIGHEST, LOWEST, symmetric_codes
from qdeploy.deploy.target import Target
from qdeploy.errors import QdeployError
from qdeploy.record import Record

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[np.generic]


def rewrite(model: ir.Model) -> None:
    for step in (with_symmetric_codes, means_of_sequences, guard_float_layers, share_initialisers):
        step(model)


def with_symmetric_codes(model: ir.Model) -> None:
    """Rewrites quantizers, weights and biases, in place.

    Precondition: quantizers as operators.py writes them, before other passes touch their codes.
    Errors: QdeployError for what has no symmetric int8 form.
    """
    graph = model.graph
    known: dict[tuple[float, int], tuple[int, int]] = {}
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            _symmetric_activation(node, graph, known)
    for node in list(graph):
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.const_value is None:
            continue
        if codes.dtype == ir.DataType.INT32:
            _float_bias(node, graph)
        else:
            _symmetric_weight(node, graph)


def means_of_sequences(model: ir.Model) -> None:
    """AdaptiveAvgPool1d(1) becomes a mean over the last axis.

    torch exports it as a mean over images of height 1: Unsqueeze, ReduceMean and Squeeze, which
    ONNX Runtime cannot load between signed codes.
    """
    graph = model.graph
    for node in list(graph):
        image, flat = made_by(node.inputs[0], "Unsqueeze"), only_reader(node.outputs[0], "Squeeze")
        if node.op_type != "ReduceMean" or image is None or flat is None:
            continue
        axes = [_array(part.inputs[1]).tolist() for part in (image, flat, node)]
        if axes[:2] != [[-2], [-2]] or sorted(axes[2]) != [-2, -1]:
            continue
        mean = ir.node("ReduceMean", [image.inputs[0], constant(graph, np.array([-1]))])
        parts = [image, node, flat]
        ir.convenience.replace_nodes_and_values(
            graph, flat, parts, [mean], flat.outputs, mean.outputs
        )


def coarser_steps(network: nn.Module) -> tuple[int, int]:
    """How many activations of a converted network get a larger step, and of how many."""
    from qdeploy.layers.integer import IntegerActivation  # torch, which a report is read without

    ranges = {
        name: (module.grid.lowest - int(module.zero), module.grid.highest - int(module.zero))
        for name, module in network.named_modules()
        if isinstance(module, IntegerActivation) and module.saturates
    }
    return sum(_growth(*found) > 1 for found in ranges.values()), len(ranges)


def _symmetric_activation(
    quantizer: ir.Node, graph: ir.Graph, known: dict[tuple[float, int], tuple[int, int]]
) -> None:
    """known: {step and zero point: range} of what stands before; values that were only moved since
    are rounded again on the same grid, without its bounds."""
    end = _codes_end(quantizer)
    readers = [use.node for use in end.uses()]
    step = _array(readers[0].inputs[1]).astype(np.float32)
    zero_code = int(_array(readers[0].inputs[2]))
    low, high = known.setdefault((float(step), zero_code), _range(quantizer, end))
    source = quantizer.inputs[0]
    before: list[ir.Node] = []
    if made_by(end, "Where"):
        before = _sign(source, graph)
    elif not _saturates(quantizer, end, low, high):
        bounds = [constant(graph, np.float32(code * step)) for code in (low, high)]
        before = [ir.node("Clip", [source, *bounds])]
    scale = constant(graph, np.float32(step * _growth(low, high)))
    zero = constant(graph, np.int8(0))
    codes = ir.node("QuantizeLinear", [before[-1].outputs[0] if before else source, scale, zero])
    graph.insert_before(quantizer, [*before, codes])
    for reader in readers:
        for place, value in enumerate((codes.outputs[0], scale, zero)):
            reader.replace_input_with(place, value)


def _codes_end(quantizer: ir.Node) -> ir.Value:
    """The codes that are read back: those of the quantizer, after a Clip or a choice of signs."""
    value = quantizer.outputs[0]
    while True:
        readers = [use.node for use in value.uses()]
        kinds = {reader.op_type for reader in readers}
        if kinds == {"DequantizeLinear"}:
            return value
        if len(readers) > 1 or not kinds <= {"Clip", "GreaterOrEqual", "Where"}:
            raise QdeployError(
                f"target tensorrt knows no form of {', '.join(sorted(kinds)) or 'an output'} on the "
                f"codes of {quantizer.inputs[0].name}; leave that layer in float "  # type: ignore[union-attr]
                '(layers = {"its name" = "float"})'
            )
        value = readers[0].outputs[0]


def _range(quantizer: ir.Node, end: ir.Value) -> tuple[int, int]:
    """The lowest and the highest code less the zero point."""
    zero = _array(next(iter(end.uses())).node.inputs[2])
    if zero.dtype != np.uint8:
        raise QdeployError(
            f"target tensorrt has codes of 8 bits at most, and {quantizer.inputs[0].name} has "  # type: ignore[union-attr]
            f"{8 * zero.dtype.itemsize}: train with act_bits = 8 or less, or leave activations in "
            'float (act_bits = "float")'
        )
    maker = end.producer()
    if maker is not None and maker.op_type in ("Clip", "Where"):
        low, high = sorted(int(_array(bound)) for bound in maker.inputs[1:])
    else:
        low, high = 0, 255
    return low - int(zero), high - int(zero)


def _growth(low: int, high: int) -> float:
    """What the step is multiplied by, so that the codes fit int8; 1 where they do."""
    return max(1.0, low / LOWEST, high / HIGHEST)


def _saturates(quantizer: ir.Node, end: ir.Value, low: int, high: int) -> bool:
    """Whether int8 itself ends where the range does, or at 8 bits near it.

    A range of 8 bits is where values were seen, not where they must end: what lies outside is
    rounded like the rest instead of cut off, and no operator stands between a layer and its codes.
    """
    if end is quantizer.outputs[0]:
        return True
    never_negative = low == 0 and made_by(quantizer.inputs[0], "Relu") is not None
    return (low == LOWEST or never_negative) and high == HIGHEST


def _sign(source: ir.Value | None, graph: ir.Graph) -> list[ir.Node]:
    zero, one, minus = (constant(graph, np.float32(value)) for value in (0, 1, -1))
    positive = ir.node("GreaterOrEqual", [source, zero])
    return [positive, ir.node("Where", [positive.outputs[0], one, minus])]


def _symmetric_weight(node: ir.Node, graph: ir.Graph) -> None:
    codes, zero = _array(node.inputs[0]), _array(node.inputs[2])
    weight = str(node.inputs[0].name)  # type: ignore[union-attr]
    symmetric = symmetric_codes(codes, zero, weight, "tensorrt")
    node.replace_input_with(0, constant(graph, symmetric))
    node.replace_input_with(2, constant(graph, np.zeros(zero.shape, np.int8)))


def _float_bias(node: ir.Node, graph: ir.Graph) -> None:
    codes, scale = _array(node.inputs[0]), _array(node.inputs[1])
    value = constant(graph, codes.astype(np.float32) * scale.astype(np.float32))
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def advice(record: Record) -> Iterator[str]:
    """That TensorRT itself did not run the file; how many activations are coarser than in training."""
    if "TensorrtExecutionProvider" not in {row.provider for row in record.timings}:
        yield (
            "Target tensorrt: codes are signed, which no integer kernel of ONNX Runtime's CPU and "
            "CUDA providers takes. Latency and kernels here are those of a float network; TensorRT "
            "itself has not run the file."
        )
    coarser, activations = record.delivery.activations or (0, 0)
    if coarser:
        yield (
            f"{coarser} of {activations} activations have a larger step than in training: 8 bits "
            "less their zero point do not fit int8. With act_bits = 7, what is never negative is "
            "exact; agreement and accuracy here are those of this file."
        )


# TensorRT reads codes of 4 and 8 bits only, so nothing is packed.
TARGET = Target(
    rewrite=rewrite,
    packs=False,
    in_rows=False,
    # ONNX Runtime rounds a float bias beside signed codes, since 1.23; TensorRT does not.
    as_written=True,
    provider="tensorrt",
    coarser_steps=coarser_steps,
    advice=advice,
    accelerator='gpu_execution_accelerator [ { name: "tensorrt" parameters { key: "precision_mode" '
    'value: "INT8" } } ]',
)
