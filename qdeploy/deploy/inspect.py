"""What is in an ONNX file: its layers with their bits, scales and bytes, and where it is from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import tomli

from qdeploy.benchmark.graph import Graph, is_foreign
from qdeploy.deploy.contents import WITHOUT_SCALES, Contents, FileLayer, Port, Quantized
from qdeploy.deploy.repack import savings
from qdeploy.deploy.runtime_floor import runtime_floor
from qdeploy.deploy.saturation import in_kernel_order, may_saturate
from qdeploy.deploy.seal import Seal, added_entries, state
from qdeploy.onnx_file import MOVERS, RECURRENT, read, stored_bytes

# Which input of an operator is its weight.
PLACES = {
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "ConvInteger": 1, "MatMulInteger": 1,
    "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "Gather": 0,
}  # fmt: skip
CODES = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
ON_CODES = {"QLinearConv", "QLinearMatMul", "QGemm"}


def inspect(path: Path) -> Contents:
    """Reads a file of qdeploy or of another tool. Errors: QdeployError if it is no ONNX file."""
    model = read(path)
    graph = Graph(model, path.parent)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    seal = state(model, path.parent)
    return Contents(
        file=str(path),
        seal=seal,
        added=tuple(added_entries(model, path.parent)) if seal is Seal.METADATA else (),
        bytes=stored_bytes(path),
        weight_bytes=sum(map(graph.held, graph.tensors)),
        metadata_bytes=sum(entry.ByteSize() for entry in model.metadata_props),
        saving=savings(model, path.parent),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        runs_on="" if seal is Seal.NONE else runtime_floor(graph),
        inputs=tuple(
            _port(value) for value in model.graph.input if value.name not in graph.tensors
        ),
        outputs=tuple(map(_port, model.graph.output)),
        layers=tuple(_Reader(graph).layers()),
        recipe=_parsed(tomli.loads, metadata.get("qdeploy.recipe", "")),
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

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def layers(self) -> Iterator[FileLayer]:
        for node, name in zip(self.graph.nodes, self.graph.names(), strict=True):
            weight = self.weight_of(node)
            if node.op_type in RECURRENT and _is_known(node):
                yield from self.matrices(node, name)
            elif weight is not None and not self.is_unpacking(node, weight):
                yield self.layer(node, name, weight)

    def is_unpacking(self, node: onnx.NodeProto, weight: str) -> bool:
        """Whether it makes a constant, and is no table of which the same rows are read in every run."""
        computed = not any(map(self.graph.is_constant, node.output))
        return not computed and (
            node.op_type != "Gather" or self.graph.array(weight).dtype != np.float32
        )

    def matrices(self, node: onnx.NodeProto, name: str) -> Iterator[FileLayer]:
        """What a recurrent operator multiplies by, in float: its input by ih, its state by hh."""
        weights, biases = node.input[1:3], [one for one in node.input[3:4] if one]
        if not all(map(self.graph.is_constant, (*weights, *biases))):
            return
        ways = list(zip(*map(self.joined, weights), strict=True))
        parts = {
            f"{name}.{word}{way}": part
            for way, pair in zip(("", "_reverse"), ways, strict=False)
            for word, part in zip(("ih", "hh"), pair, strict=True)
        }
        for own, part in parts.items():
            source, codes = self.quantized_weight(part)
            stored, size = self.storage(source)
            yield FileLayer(
                name=own,
                operator=node.op_type,
                shape=self.graph.array(part).shape,
                stored=stored,
                bytes=size,
                all_bytes=self.made_of([part]) + self.made_of(biases) // len(parts),
                weight=codes,
                activation=None,
            )

    def joined(self, value: str) -> list[str]:
        """The tensors that a constant is put together of, each as it was before it was moved."""
        value = self.graph.unmoved(value)
        maker = self.graph.maker(value)
        if maker is None or maker.op_type != "Concat":
            return [value]
        return [part for one in maker.input for part in self.joined(one)]

    def weight_of(self, node: onnx.NodeProto) -> str | None:
        """The constant that a product reads as its weight; of a foreign operator the largest."""
        if _is_known(node):
            weight = node.input[PLACES[node.op_type]] if node.op_type in PLACES else ""
            found = weight if self.graph.is_constant(weight) else None
            return found if node.op_type != "Gather" or self.is_table(weight) else None
        tensors = self.graph.tensors
        matrices = [one for one in node.input if one in tensors and len(tensors[one].dims) > 1]
        return max(matrices, key=lambda one: self.graph.array(one).size, default=None)

    def is_table(self, name: str) -> bool:
        """Whether rows of floats, or of codes, are looked up in it; not scales, one a row, nor numbers."""
        if not self.graph.is_constant(name):
            return False
        table = self.graph.array(name)
        kind = ir.DataType.from_numpy(table.dtype)
        return (
            table.ndim == 2 and table.shape[1] > 1 and (kind in CODES or kind.is_floating_point())
        )

    def layer(self, node: onnx.NodeProto, name: str, weight: str) -> FileLayer:
        operator, unknown, source = node.op_type, "", weight
        codes = activation = None
        if not _is_known(node):
            operator = f"{node.domain}::{node.op_type}"
            unknown = f"bits and scales of {operator}"
        elif operator in ON_CODES:
            codes, activation = self.operands(node)
        elif operator in WITHOUT_SCALES:
            codes = self.codes(weight, "", node.input[3] if len(node.input) > 3 else "")
            unknown = f"scales of {operator}, which other operators multiply by"
        elif operator == "Gather":
            source, codes = self.quantized_table(node, weight)
        else:
            source, codes = self.quantized_weight(weight)
            activation = self.activation(node.input[0])
        stored, size = self.storage(source)
        return FileLayer(
            name=name,
            operator=operator,
            shape=self.graph.array(weight).shape,
            stored=stored,
            bytes=size,
            all_bytes=self.all_bytes(node),
            weight=codes,
            activation=activation,
            saturates=self.saturates(node, weight, source, codes, activation),
            unknown=unknown,
        )

    def saturates(
        self,
        node: onnx.NodeProto,
        weight: str,
        source: str,
        codes: Quantized | None,
        reads: Quantized | None,
    ) -> bool:
        """source: the codes that the weight is read from."""
        if codes is None or codes.type != "int8":
            return False
        highest = 255  # of MatMulInteger, whose input nothing bounds
        if reads is not None:
            # Padding adds the zero point. On x86 ONNX Runtime makes int8 inputs uint8.
            highest = max(reads.codes[1], reads.zeros[1]) + 128 * (reads.type == "int8")
        elif node.op_type not in WITHOUT_SCALES:
            return False
        found = self.graph.array(source)
        if source != weight and self.graph.unmoved(weight) != weight:  # turned on its way
            return may_saturate(found.reshape(1, -1), highest, order_known=False)
        rows = in_kernel_order(node, found, one_zero=codes.zeros[0] == codes.zeros[1])
        return rows is not None and may_saturate(rows, highest)

    def storage(self, name: str) -> tuple[str, int]:
        """Type and bytes of what a weight is stored as: the largest of its initialisers."""
        sources = sorted(self.graph.sources(name))
        if not sources:
            return "in a node", self.graph.held(name)
        largest = max(sources, key=self.graph.held)
        return _type_name(self.graph.tensors[largest].data_type), self.graph.held(largest)

    def all_bytes(self, node: onnx.NodeProto) -> int:
        """Of what its constant inputs are made of, and of the bias that is added to a MatMul."""
        names = set(node.input)
        readers = self.graph.readers[node.output[0]]
        if node.op_type == "MatMul" and [reader.op_type for reader in readers] == ["Add"]:
            names.update(readers[0].input)
        return self.made_of(n for n in names if self.graph.is_constant(n))

    def made_of(self, constants: Iterable[str]) -> int:
        """The bytes of all that they are computed from."""
        sources = (self.graph.sources(name) or {name} for name in constants)
        return sum(map(self.graph.held, set().union(*sources)))

    def quantized_weight(self, name: str) -> tuple[str, Quantized | None]:
        """The codes that a weight is read from, and their quantization; None for a float weight."""
        name = self.graph.unmoved(name)
        maker = self.graph.maker(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            codes, scale, zero = _three(maker.input)
            return codes, self.codes(codes, scale, zero)
        if maker is not None and maker.op_type == "Mul":  # Cast, less a zero point, times the scale
            return self.unfolded(maker) or (name, None)
        return name, None

    def quantized_table(self, node: onnx.NodeProto, table: str) -> tuple[str, Quantized | None]:
        """As `quantized_weight`; where rows of codes are looked up, so are the scales of the rows."""
        if ir.DataType.from_numpy(self.graph.array(table).dtype) not in CODES:
            return self.quantized_weight(table)
        scale = zero = ""
        behind = self.graph.readers[node.output[0]]
        while len(behind) == 1 and behind[0].op_type in ("Cast", "Sub", "Mul"):
            looked_up = [self.graph.maker(value) for value in behind[0].input[1:]]
            for maker in looked_up:
                if maker is not None and maker.op_type == "Gather":
                    zero = maker.input[0] if behind[0].op_type == "Sub" else zero
                    scale = maker.input[0] if behind[0].op_type == "Mul" else scale
            behind = self.graph.readers[behind[0].output[0]] if not scale else []
        return table, self.codes(table, scale, zero)

    def unfolded(self, product: onnx.NodeProto) -> tuple[str, Quantized] | None:
        centred, scale = product.input
        maker, zero = self.graph.maker(centred), ""
        if maker is not None and maker.op_type == "Sub":
            centred, zero = maker.input
            maker = self.graph.maker(centred)
        if maker is None or maker.op_type != "Cast":
            return None
        found = self.codes(maker.input[0], scale, zero)
        return None if found is None else (maker.input[0], found)

    def operands(self, node: onnx.NodeProto) -> tuple[Quantized | None, Quantized | None]:
        """Of operators that read codes, scales and zero points in turn."""
        data, scale, zero, weight, weight_scale, weight_zero = node.input[:6]
        if not all(map(self.graph.is_constant, (scale, zero, weight_scale, weight_zero))):
            return None, None
        return self.codes(weight, weight_scale, weight_zero), self.ranged(data, scale, zero)

    def activation(self, name: str) -> Quantized | None:
        """The quantization of what a layer reads; None if it is float."""
        maker = self.graph.maker(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        codes, scale, zero = _three(maker.input)
        known = self.graph.is_constant(scale) and (not zero or self.graph.is_constant(zero))
        return self.ranged(codes, scale, zero) if known else None

    def codes(self, codes: str, scale: str, zero: str) -> Quantized | None:
        """Constant codes: as many bits as their levels need; None for floats, however narrow."""
        found = self.graph.array(codes)
        if not ir.DataType.from_numpy(found.dtype).is_integer():
            return None
        levels = np.unique(found.astype(np.int64))
        ends = int(levels[0]), int(levels[-1])
        return self.quantized(found.dtype.name, ends, len(levels), scale, zero)

    def ranged(self, codes: str, scale: str, zero: str) -> Quantized | None:
        """Codes that every run computes, as many bits as they may take; None for narrow floats."""
        kind = ir.DataType.UINT8
        if zero:
            kind = ir.DataType.from_numpy(self.graph.array(zero).dtype)
        if not kind.is_integer():
            return None
        low, high, levels = self.code_range(codes, kind, scale, zero)
        return self.quantized(kind.name.lower(), (low, high), levels, scale, zero)

    def quantized(
        self, kind: str, ends: tuple[int, int], levels: int, scale: str, zero: str
    ) -> Quantized:
        scales = self.graph.array(scale).astype(np.float64) if scale else None
        zeros = self.graph.array(zero).astype(np.int64) if zero else np.zeros(1, np.int64)
        return Quantized(
            type=kind,
            bits=max(1, math.ceil(math.log2(levels))),
            codes=ends,
            scales=None if scales is None else (float(scales.min()), float(scales.max())),
            channels=1 if scales is None else scales.size,
            zeros=(int(zeros.min()), int(zeros.max())),
        )

    def code_range(
        self, codes: str, kind: ir.DataType, scale: str, zero: str
    ) -> tuple[int, int, int]:
        """Lowest and highest code and how many there are, as Clips or choices of two leave them."""
        whole = int(kind.min), int(kind.max)
        step, zeros = self.scalars([scale]), self.scalars([zero]) or [0.0]
        makers = self.bounded(codes, scale)
        ends = [self.bounds(*maker, whole, step, zeros[0]) for maker in makers]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        chosen = all(maker is not None and maker.op_type == "Where" for maker, _ in makers)
        return low, high, 2 if chosen and whole not in ends else high - low + 1

    def bounds(
        self,
        maker: onnx.NodeProto | None,
        on_codes: bool,
        whole: tuple[int, int],
        step: Sequence[float],
        zero: float,
    ) -> tuple[int, int]:
        """The lowest and the highest code that a Clip or Where leaves of all."""
        bounds = [] if maker is None else self.scalars(maker.input[1:])
        if len(bounds) != 2 or not step:
            return whole
        if not on_codes:
            bounds = [bound / step[0] + zero for bound in bounds]
        low, high = sorted(round(min(max(bound, whole[0]), whole[1])) for bound in bounds)
        return low, high

    def bounded(
        self, codes: str, scale: str, on_codes: bool = True
    ) -> list[tuple[onnx.NodeProto | None, bool]]:
        """The Clips or Wheres that codes come from, and whether each bounds codes or the values of them.

        None where there is none. Of a Concat those of all that it joins.
        """
        while (maker := self.graph.maker(codes)) is not None:
            if maker.op_type in ("Clip", "Where"):
                return [(maker, on_codes)]
            if maker.op_type == "Concat":
                joined = (self.bounded(part, scale, on_codes) for part in maker.input)
                return [one for part in joined for one in part]
            if maker.op_type == "QuantizeLinear":
                on_codes = False
            elif maker.op_type == "DequantizeLinear" and maker.input[1] == scale:
                on_codes = True
            elif maker.op_type not in MOVERS and not _repeats(maker):
                break
            codes = maker.input[0]
        return [(None, on_codes)]

    def scalars(self, names: Iterable[str]) -> list[float]:
        """Those that are constants of one element."""
        constants = [self.graph.array(name) for name in names if self.graph.is_constant(name)]
        return [float(constant.item()) for constant in constants if constant.size == 1]


def _is_known(node: onnx.NodeProto) -> bool:
    """ONNX's own operators, and ONNX Runtime's QGemm and channels-last QLinearConv."""
    return not is_foreign(node.domain) or node.op_type in ON_CODES


def _repeats(node: onnx.NodeProto) -> bool:
    """Whether it is an upsampling that only repeats values."""
    modes = [one.s for one in node.attribute if one.name == "mode"]
    return node.op_type == "Resize" and modes in ([], [b"nearest"])


def _three(names: Any) -> tuple[str, str, str]:
    """Codes, scale and zero point, "" for one that is left out."""
    codes, scale, *rest = names
    return codes, scale, rest[0] if rest else ""
