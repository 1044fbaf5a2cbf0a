"""A LiteRT file (.tflite) in the making: tensors, operators, and what the flatbuffer wants around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import QdeployError

# From which version of its schema on an operator takes int8, where that is not the first.
VERSIONS = {
    "ADD": 2, "AVERAGE_POOL_2D": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 5,
    "FULLY_CONNECTED": 12, "MAXIMUM": 2, "MAX_POOL_2D": 2, "MEAN": 2, "MINIMUM": 2, "MUL": 2, "PAD": 2,
    "PADV2": 2, "SLICE": 2, "TRANSPOSE": 2,
}  # fmt: skip
TYPES = {"float32": "FLOAT32", "int32": "INT32", "int8": "INT8", "uint8": "UINT8"}

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Grid:
    """What a code stands for: (code - zero) * scale; per channel of an axis where there are several."""

    scale: npt.ArrayLike
    zero: npt.ArrayLike
    axis: int = 0


def schema() -> ModuleType:
    """The classes of the flatbuffer. Errors: QdeployError if LiteRT is missing."""
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        raise QdeployError(
            "target litert needs LiteRT, which is not installed: "
            'pip install "qdeploy[litert]", or choose another target'
        ) from None


class LiteRTFile:
    """One graph. Tensors are numbers; None stands for the size of a batch."""

    def __init__(self) -> None:
        self.schema = schema()
        self.buffers = [self.schema.BufferT()]  # the first is that of tensors without data
        self.tensors: list[Any] = []
        self.codes: dict[str, int] = {}
        self.operators: list[Any] = []

    def tensor(self, name: str | None, shape: Shape, dtype: str, grid: Grid | None = None) -> int:
        made = self.schema.TensorT()
        made.name, made.hasRank = name, True
        made.shape = [1 if size is None else size for size in shape]
        if None in shape:
            made.shapeSignature = [-1 if size is None else size for size in shape]
        made.type = getattr(self.schema.TensorType, TYPES[dtype])
        if grid is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(grid.scale).astype(np.float32)
            made.quantization.zeroPoint = np.atleast_1d(grid.zero).astype(np.int64)
            made.quantization.quantizedDimension = grid.axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, name: str, array: Array, grid: Grid | None = None) -> int:
        made = self.tensor(name, array.shape, array.dtype.name, grid)
        self.tensors[made].buffer = self._buffer(np.ascontiguousarray(array).tobytes())
        return made

    def name(self, tensor: int, name: str) -> None:
        """Calls a tensor so that has no name yet."""
        self.tensors[tensor].name = self.tensors[tensor].name or name

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        output: int,
        options: tuple[str, Mapping[str, Any]] | None,
    ) -> None:
        """kind and the name of its options are those of the schema."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault(kind, len(self.codes))
        made.inputs, made.outputs = list(inputs), [output]
        if options is not None:
            name, values = options
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            made.builtinOptions = getattr(self.schema, f"{name}T")()
            for key, value in values.items():
                setattr(made.builtinOptions, key, value)
        self.operators.append(made)

    def finished(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, str]
    ) -> bytes:
        """The file, with a signature that calls inputs and outputs by name."""
        flatbuffers = import_module("flatbuffers")
        graph, model = self.schema.SubGraphT(), self.schema.ModelT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        model.version, model.description, model.subgraphs = 3, "qdeploy", [graph]
        model.operatorCodes = [self._code(kind) for kind in self.codes]
        model.signatureDefs = [self._signature(inputs, outputs)]
        model.metadata = [self._metadata(*entry) for entry in metadata.items()]
        model.buffers = self.buffers
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, data: bytes) -> int:
        made = self.schema.BufferT()
        made.data = np.frombuffer(data, np.uint8)
        self.buffers.append(made)
        return len(self.buffers) - 1

    def _code(self, kind: str) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode = getattr(self.schema.BuiltinOperator, kind)
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        made.version = VERSIONS.get(kind, 1)
        return made

    def _signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        made = self.schema.SignatureDefT()
        made.signatureKey = "serving_default"
        made.inputs, made.outputs = (
            [self._named(*entry) for entry in ends.items()] for ends in (inputs, outputs)
        )
        return made

    def _named(self, name: str, tensor: int) -> Any:
        made = self.schema.TensorMapT()
        made.name, made.tensorIndex = name, tensor
        return made

    def _metadata(self, name: str, value: str) -> Any:
        made = self.schema.MetadataT()
        made.name, made.buffer = name, self._buffer(value.encode())
        return made
