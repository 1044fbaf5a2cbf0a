"""A graph between quantizers as a LiteRT graph: where its values lie, and in which codes.

ONNX rounds and reads back around each operator (QuantizeLinear, DequantizeLinear); in LiteRT a
tensor has a step, and an operator that reads and gives such tensors computes in integers. An operator
that cannot stands between DEQUANTIZE and QUANTIZE. Images are [N, C, H, W] there and [N, H, W, C] here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from qdeploy.deploy.litert.file import Array, Grid, LiteRTFile, Shape
from qdeploy.deploy.symmetric import HIGHEST, LOWEST
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import MOVERS

# The axes of an image here in terms of those there, and the other way round.
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

Node = onnx.NodeProto
Options = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Codes:
    """The uint8 codes low..high of a step; `shift` more of each is in the LiteRT file.

    The highest one stands at 127, so that int8 itself ends the range there, however few bits it has;
    where all codes stand for negative values, the zero point does, which has to fit int8 as well.
    """

    scale: float
    zero: int
    low: int
    high: int
    shift: int

    @property
    def grid(self) -> Grid:
        return Grid(self.scale, self.zero + self.shift)

    def is_on_step_of(self, other: Codes) -> bool:
        return (self.scale, self.zero) == (other.scale, other.zero)


@dataclass(frozen=True)
class Value:
    """A tensor, with channels last if it is an image; of floats where it has no codes."""

    tensor: int
    shape: Shape
    codes: Codes | None = None

    @property
    def is_positive(self) -> bool:
        """Whether nothing in it can be below 0."""
        return self.codes is not None and self.codes.low >= self.codes.zero


@dataclass(frozen=True)
class Weight:
    """Constant codes less their zero points, and the scale of each channel on an axis."""

    codes: Array
    scale: Array
    axis: int = 0

    @property
    def grid(self) -> Grid:
        return Grid(self.scale, np.zeros(self.scale.shape, np.int64), self.axis)


class LiteRTGraph:
    """What operators ask of the ONNX graph, and write into the LiteRT file."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.file = LiteRTFile()
        self.onnx = shape_inference.infer_shapes(model).graph
        self.constants = {one.name: numpy_helper.to_array(one) for one in self.onnx.initializer}
        self.weights: dict[str, Weight] = {}
        self.values: dict[str, Value] = {}
        self.floats: dict[int, Value] = {}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.onnx.node:
            for name in node.input:
                self.readers[name].append(node)
        known = [*self.onnx.input, *self.onnx.value_info, *self.onnx.output]
        self.shapes = {one.name: _shape(one) for one in known}

    # -- what stands in the ONNX graph

    def shape(self, name: str) -> Shape:
        """As LiteRT has it."""
        if name not in self.shapes:
            raise QdeployError(
                f"target litert asks for the shape of every value, and {name} depends on values: "
                "choose another target"
            )
        shape = self.shapes[name]
        return tuple(shape[axis] for axis in TO_LAST) if len(shape) == 4 else shape

    def value(self, node: Node, index: int = 0) -> Value:
        """An input that is computed."""
        if node.input[index] not in self.values:
            raise refused(
                node,
                f"{node.op_type} of what is constant, such as weights that a transposed convolution turns",
            )
        return self.values[node.input[index]]

    def parameter(self, node: Node, index: int) -> Weight:
        """An input that is constant. Floats are their own codes."""
        name = node.input[index]
        if name not in self.weights and name not in self.constants:
            raise refused(node, f"{node.op_type} whose weights are computed or turned")
        return self.weights.get(name) or Weight(self.constants[name], np.ones(1, np.float32))

    def only_reader(self, name: str) -> Node | None:
        ends = {one.name for one in self.onnx.output}
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in ends else None

    def codes_behind(self, name: str) -> Codes | None:
        """Those that alone read a value."""
        reader = self.only_reader(name)
        rounded = reader is not None and reader.op_type == "QuantizeLinear"
        return self.codes_of(reader) if rounded else None  # type: ignore[arg-type]

    def codes_of(self, quantizer: Node) -> Codes:
        """Those that a QuantizeLinear gives, up to the bounds that follow, also behind what moves them."""
        scale, zero = (self.constants[name] for name in quantizer.input[1:])
        if zero.dtype != np.uint8:
            raise QdeployError(
                f"target litert has activations of 8 bits at most, and {quantizer.input[0]} has "
                f"{8 * zero.dtype.itemsize}: train with act_bits = 8 or less"
            )
        low, high, reader = 0, 255, self.only_reader(quantizer.output[0])
        while reader is not None and reader.op_type in MOVERS:
            reader = self.only_reader(reader.output[0])
        if reader is not None and reader.op_type == "Clip":
            low, high = (int(self.constants[name]) for name in reader.input[1:])
        return Codes(float(scale), int(zero), low, high, HIGHEST - max(high, int(zero)))

    # -- what is written into the LiteRT graph

    def emit(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Shape,
        codes: Codes | None = None,
        options: Options | None = None,
        fuses: bool = False,
        positive: bool = False,
    ) -> Value:
        """An operator, and behind it the bounds of its codes where it has no others.

        fuses: whether the operator takes a ReLU; positive: whether it gives nothing below 0
        """
        bounded = codes is None or codes.low + codes.shift == LOWEST
        bounded = bounded or (positive and codes is not None and codes.low <= codes.zero)
        if codes is not None and not bounded and fuses and codes.low == codes.zero and options:
            relu = self.file.schema.ActivationFunctionType.RELU
            options, bounded = (options[0], options[1] | {"fusedActivationFunction": relu}), True
        made = self.tensor(shape, codes)
        self.file.operator(kind, inputs, made.tensor, options)
        if codes is not None and not bounded:
            made = self.clipped(made, codes, "MAXIMUM", codes.low)
        if codes is not None and codes.high + codes.shift < HIGHEST:
            made = self.clipped(made, codes, "MINIMUM", codes.high)
        return made

    def clipped(self, value: Value, codes: Codes, kind: str, bound: int) -> Value:
        """The MAXIMUM or MINIMUM of its codes and one code."""
        code = np.array(bound + codes.shift, np.int8)
        made = self.tensor(value.shape, codes)
        limit = self.file.constant(f"code {bound}", code, codes.grid)
        self.file.operator(kind, [value.tensor, limit], made.tensor, ("MaximumMinimumOptions", {}))
        return made

    def tensor(self, shape: Shape, codes: Codes | None = None) -> Value:
        dtype, grid = ("float32", None) if codes is None else ("int8", codes.grid)
        return Value(self.file.tensor(None, shape, dtype, grid), shape, codes)

    def as_floats(self, value: Value) -> Value:
        if value.codes is None:
            return value
        if value.tensor not in self.floats:
            self.floats[value.tensor] = self.emit("DEQUANTIZE", [value.tensor], value.shape)
        return self.floats[value.tensor]

    def as_codes(self, value: Value, codes: Codes, shift: int | None = None) -> Value:
        """On this step, rounded where it is on another one; shift: and at this place in int8.

        From step to step it goes by floats: XNNPACK has 8 bits behind the point for their quotient.
        """
        known, positive = value.codes, value.is_positive
        if known is not None and known.is_on_step_of(codes):
            if shift in (None, known.shift):
                return value
        else:
            value = self.as_floats(value)
        options: Options = ("QuantizeOptions", {})
        return self.emit("QUANTIZE", [value.tensor], value.shape, codes, options, positive=positive)

    def transposed(self, value: Value, order: Sequence[int]) -> Value:
        axes = self.file.constant("axes", np.array(order, np.int32))
        shape = tuple(value.shape[axis] for axis in order)
        return self.emit_moved(
            "TRANSPOSE", [value.tensor, axes], value, shape, ("TransposeOptions", {})
        )

    def emit_moved(
        self, kind: str, inputs: Sequence[int], value: Value, shape: Shape, options: Options
    ) -> Value:
        """An operator that keeps the codes of what it reads."""
        made = self.tensor(shape, value.codes)
        self.file.operator(kind, inputs, made.tensor, options)
        return made

    def reshaped(self, value: Value, shape: Shape) -> Value:
        if shape == value.shape:
            return value
        sizes = np.array([-1 if size is None else size for size in shape], np.int32)
        inputs = [value.tensor, self.file.constant("shape", sizes)]
        options = ("ReshapeOptions", {"newShape": sizes})
        return self.emit_moved("RESHAPE", inputs, value, shape, options)


def narrowed(codes: Codes, low: int, high: int) -> Codes:
    return replace(codes, low=max(low, codes.low), high=min(high, codes.high))


def attributes(node: Node) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def refused(node: Node, what: str) -> QdeployError:
    return QdeployError(
        f"target litert has no form of {what}, at {node.name or node.output[0]}: choose another "
        "target, or write the network without it"
    )


def _shape(info: onnx.ValueInfoProto) -> Shape:
    return tuple(
        size.dim_value if size.HasField("dim_value") else None
        for size in info.type.tensor_type.shape.dim
    )
