"""What is in an ONNX file: its layers with their bits, scales and bytes, and where it is from."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qdeploy.deploy.constants import Constants
from qdeploy.deploy.seal import is_intact
from qdeploy.onnx_file import MOVERS, content, read, stored_bytes

# Where an operator reads: its data, its weight and, if it computes on codes, their scales.
PLACES = {
    "Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1),
    "ConvInteger": (0, 1), "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3), "QLinearMatMul": (0, 3),
}  # fmt: skip
ON_CODES = {"QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True)
class Quantized:
    """Integer codes: their type, how many bits tell them apart, their scales and zero points.

    codes   the lowest and the highest; of an activation, those that it may take
    scales  the smallest and the largest; channels: how many there are
    """

    type: str
    bits: int
    codes: tuple[int, int]
    scales: tuple[float, float]
    channels: int
    zeros: tuple[int, int]


@dataclass(frozen=True)
class FileLayer:
    """A node with a constant weight.

    name      the node's own, else its number among the layers and its operator
    shape     of the weight
    stored    type of the initialiser that holds the weight, and the bytes that it takes
    all_bytes of all constants that the node is computed from: codes, scales, zero points, bias
    weight    None: float, as is activation
    unknown   what could not be read, in words; "" if all was
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    stored: str
    bytes: int
    all_bytes: int
    weight: Quantized | None
    activation: Quantized | None
    unknown: str = ""


@dataclass(frozen=True)
class Port:
    """An input or output: free dimensions are names, or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Contents:
    """An ONNX file, read.

    intact      whether all is as it was sealed; None for a file without a hash
    bytes       on the disk, with weights that lie beside it; weight_bytes and metadata_bytes of them
    recipe      what it was made by; {} if the file does not say, as is origin
    metadata    all entries, as text
    """

    file: str
    bytes: int
    weight_bytes: int
    metadata_bytes: int
    intact: bool | None
    producer: str
    opset: dict[str, int]
    ir_version: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[FileLayer, ...]
    recipe: dict[str, Any]
    origin: dict[str, Any]
    metadata: dict[str, str]


def inspect(path: Path) -> Contents:
    """Reads a file of qdeploy or of another tool. Errors: QdeployError if it is no ONNX file."""
    model = read(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    own = {tensor.name for tensor in model.graph.initializer}
    return Contents(
        file=str(path),
        bytes=stored_bytes(path),
        weight_bytes=sum(len(content(t, path.parent)) for t in model.graph.initializer),
        metadata_bytes=sum(entry.ByteSize() for entry in model.metadata_props),
        intact=is_intact(model, path.parent),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        inputs=tuple(_port(value) for value in model.graph.input if value.name not in own),
        outputs=tuple(map(_port, model.graph.output)),
        layers=tuple(_Reader(model, path.parent).layers()),
        recipe=_parsed(tomllib.loads, metadata.get("qdeploy.recipe", "")),
        origin=_parsed(json.loads, metadata.get("qdeploy.origin", "{}")),
        metadata=metadata,
    )


def _parsed(parse: Any, text: str) -> dict[str, Any]:
    try:
        found = parse(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    sizes = (
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
    )
    return Port(value.name, _type_name(tensor.elem_type), tuple(sizes))


def _type_name(code: int) -> str:
    """ONNX's number of a type as a word, such as uint8."""
    return onnx.TensorProto.DataType.Name(code).lower().replace("float", "float32", code == 1)


class _Reader:
    """Finds the layers of one graph."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.nodes = model.graph.node
        self.constants = Constants(model, folder)
        self.makers = self.constants.makers
        self.folder = folder
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def layers(self) -> Iterator[FileLayer]:
        number = 0
        for node in self.nodes:
            if any(name in self.constants for name in node.output):
                continue
            if node.op_type in PLACES and node.domain in ("", "ai.onnx"):
                data, weight = (node.input[place] for place in PLACES[node.op_type])
                if weight in self.constants:
                    number += 1
                    yield self.layer(node, number, data, weight)
            elif node.domain not in ("", "ai.onnx") and (weights := self.weights_of(node)):
                number += 1
                yield self.strange(node, number, weights)

    def layer(self, node: onnx.NodeProto, number: int, data: str, weight: str) -> FileLayer:
        if node.op_type in ON_CODES:
            codes, activation = self.operands(node)
            source = weight
        else:
            source, codes = self.quantized_weight(weight)
            activation = self.activation(data)
        return FileLayer(
            name=node.name or f"{number} {node.op_type}",
            operator=node.op_type,
            shape=self.constants[weight].shape,
            **self.storage(source),
            all_bytes=self.all_bytes(node),
            weight=codes,
            activation=activation,
        )

    def strange(self, node: onnx.NodeProto, number: int, weights: list[str]) -> FileLayer:
        """An operator of another domain: what it makes of its weights is not known here."""
        largest = max(weights, key=lambda name: self.constants[name].size)
        return FileLayer(
            name=node.name or f"{number} {node.op_type}",
            operator=f"{node.domain}::{node.op_type}",
            shape=self.constants[largest].shape,
            **self.storage(largest),
            all_bytes=self.all_bytes(node),
            weight=None,
            activation=None,
            unknown=f"bits and scales of {node.domain}::{node.op_type}",
        )

    def weights_of(self, node: onnx.NodeProto) -> list[str]:
        constants = (name for name in node.input if name in self.constants.tensors)
        return [name for name in constants if len(self.constants.tensors[name].dims) > 1]

    def storage(self, name: str) -> dict[str, Any]:
        """Type and bytes of what a weight is stored as: the largest of its initialisers."""
        sources = self.constants.sources(name)
        if not sources:
            return {"stored": "in a node", "bytes": self.held(name)}
        largest = max(sorted(sources), key=self.held)
        kind = _type_name(self.constants.tensors[largest].data_type)
        return {"stored": kind, "bytes": self.held(largest)}

    def all_bytes(self, node: onnx.NodeProto) -> int:
        """Of what its constant inputs are made of, and of the bias that is added to a MatMul."""
        names = set(node.input)
        readers = self.readers.get(node.output[0], [])
        if node.op_type == "MatMul" and [reader.op_type for reader in readers] == ["Add"]:
            names.update(readers[0].input)
        constants = [name for name in names if name in self.constants]
        return sum(
            map(self.held, set().union(*(self.constants.sources(c) or {c} for c in constants)))
        )

    def held(self, name: str) -> int:
        """The bytes of a constant, in the file or beside it."""
        tensor = self.constants.tensors.get(name)
        stored = b"" if tensor is None else content(tensor, self.folder)
        return len(stored) or self.constants[name].nbytes

    def quantized_weight(self, name: str) -> tuple[str, Quantized | None]:
        """The codes that a weight is read from, and their quantization; None for a float weight."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in MOVERS:
            name = maker.input[0]
            maker = self.makers.get(name)
        if maker is None:
            return name, None
        if maker.op_type == "DequantizeLinear":
            codes, scale, zero = _three(maker.input)
            return codes, self.codes(codes, scale, zero)
        if maker.op_type == "Mul":  # Cast, less a zero point, times the scale
            return self.unfolded(maker) or (name, None)
        return name, None

    def unfolded(self, product: onnx.NodeProto) -> tuple[str, Quantized] | None:
        centred, scale = product.input
        maker, zero = self.makers.get(centred), ""
        if maker is not None and maker.op_type == "Sub":
            centred, zero = maker.input
            maker = self.makers.get(centred)
        if maker is None or maker.op_type != "Cast":
            return None
        codes = maker.input[0]
        if not np.issubdtype(self.constants[codes].dtype, np.integer):
            return None
        return codes, self.codes(codes, scale, zero)

    def codes(self, codes: str, scale: str, zero: str) -> Quantized:
        """Constant codes: as many bits as their levels need."""
        found = self.constants[codes].astype(np.int64)
        levels = np.unique(found)
        return Quantized(
            type=str(self.constants[codes].dtype),
            bits=max(1, math.ceil(math.log2(len(levels)))),
            codes=(int(levels[0]), int(levels[-1])),
            **self.steps(scale, zero),
        )

    def steps(self, scale: str, zero: str) -> dict[str, Any]:
        scales = self.constants[scale].astype(np.float64)
        zeros = self.constants[zero].astype(np.int64) if zero else np.zeros(1, np.int64)
        return {
            "scales": (float(scales.min()), float(scales.max())),
            "channels": scales.size,
            "zeros": (int(zeros.min()), int(zeros.max())),
        }

    def activation(self, name: str) -> Quantized | None:
        """The quantization of what a layer reads; None if it is float."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        codes, scale, zero = _three(maker.input)
        if scale not in self.constants or (zero and zero not in self.constants):
            return None
        kind = self.constants[zero].dtype if zero else np.dtype(np.uint8)
        return self.ranged(kind, self.code_range(codes, kind, scale, zero), scale, zero)

    def ranged(
        self, kind: np.dtype[Any], codes: tuple[int, int, int], scale: str, zero: str
    ) -> Quantized:
        low, high, levels = codes
        bits = max(1, math.ceil(math.log2(levels)))
        return Quantized(str(kind), bits, (low, high), **self.steps(scale, zero))

    def code_range(
        self, codes: str, kind: np.dtype[Any], scale: str, zero: str
    ) -> tuple[int, int, int]:
        """Lowest and highest code and how many there are, as a Clip or a choice on the way leaves them."""
        maker = self.makers.get(codes)
        while maker is not None:
            if maker.op_type == "Clip" and len(maker.input) == 3:
                low, high = (self.code(bound, kind, scale, zero) for bound in maker.input[1:])
                return low, high, high - low + 1
            if maker.op_type == "Where":
                low, high = sorted(int(self.constants[value]) for value in maker.input[1:])
                return low, high, 2
            same_grid = maker.op_type != "DequantizeLinear" or maker.input[1] == scale
            if (
                maker.op_type not in MOVERS | {"QuantizeLinear", "DequantizeLinear"}
                or not same_grid
            ):
                break
            maker = self.makers.get(maker.input[0])
        limits = np.iinfo(kind)
        return limits.min, limits.max, limits.max - limits.min + 1

    def code(self, bound: str, kind: np.dtype[Any], scale: str, zero: str) -> int:
        """The code of a bound, which may be that of the float values in front of the quantizer."""
        value = self.constants[bound]
        if value.dtype.kind == "f":
            offset = self.constants[zero].astype(np.int64) if zero else 0
            limits = np.iinfo(kind)
            steps = np.rint(value.astype(np.float64) / self.constants[scale].astype(np.float64))
            value = np.clip(steps + offset, limits.min, limits.max)
        return int(value)

    def operands(self, node: onnx.NodeProto) -> tuple[Quantized | None, Quantized | None]:
        """Of QLinearConv and QLinearMatMul, which read codes, scales and zero points in turn."""
        _, scale, zero, weight, weight_scale, weight_zero = node.input[:6]
        if not all(name in self.constants for name in (scale, zero, weight_scale, weight_zero)):
            return None, None
        kind: np.dtype[Any] = self.constants[zero].dtype
        limits = np.iinfo(kind)
        everything = limits.min, limits.max, limits.max - limits.min + 1
        return (
            self.codes(weight, weight_scale, weight_zero),
            self.ranged(kind, everything, scale, zero),
        )


def _three(names: Any) -> tuple[str, str, str]:
    """Codes, scale and zero point, "" for one that is left out."""
    codes, scale, *rest = names
    return codes, scale, rest[0] if rest else ""
