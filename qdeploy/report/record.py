"""The record of one export: every number that the report shows, as data.

Shares and accuracies are fractions of 1, sizes are bytes, times are milliseconds. What was not
measured is None, or an empty tuple.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qdeploy.benchmark import Latency, Machine, Placement
from qdeploy.errors import QdeployError

FLOAT_BITS = 32  # what float counts as in bit operations


@dataclass(frozen=True)
class Dataset:
    """The data that accuracy and agreement were measured on."""

    title: str
    test_samples: int


@dataclass(frozen=True)
class Accuracy:
    """Fractions of the test set; top5 is None where there are too few classes for it."""

    top1: float
    top5: float | None


@dataclass(frozen=True)
class Accuracies:
    """The float network, the training network in evaluation mode, and the ONNX file."""

    float: Accuracy | None
    trained: Accuracy | None
    onnx: Accuracy | None


@dataclass(frozen=True)
class Agreement:
    """The ONNX file against the training network in evaluation mode, over `samples` images.

    Attributes:
        top1: the fraction of images that both put in the same class.
        max_logit_difference: the largest absolute difference of a logit; the mean is over all.
    """

    top1: float
    max_logit_difference: float
    mean_logit_difference: float
    samples: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of the ONNX file, of its float32 and its unpacked int8 twin, and the lower bound.

    Attributes:
        bound: bits x weights / 8, and 4 bytes for each scale, bias and float weight.
    """

    onnx: int
    float: int | None
    int8: int | None
    bound: int | None


@dataclass(frozen=True)
class Layer:
    """One layer as it ships.

    Attributes:
        weight_bits: bits of a code; None for a layer left in float, as is act_bits.
        weights: how many weights there are.
        levels: {code: how many weights hold it}, empty for a layer left in float.
        weight_bytes: what the weights take in the file.
        bound_bytes: the layer's part of Sizes.bound.
    """

    name: str
    kind: str
    weight_bits: int | None
    act_bits: int | None
    weights: int
    levels: dict[int, int]
    weight_bytes: int
    bound_bytes: int


@dataclass(frozen=True)
class LayerWork:
    """What one layer computes for one input.

    Attributes:
        weight_bits: None for float, as is act_bits.
        parameters: those of the float layer and of the BatchNorm joined with it.
        macs: multiply-accumulates: products of a convolution, Linear layer or matrix product.
        bit_operations: macs x weight bits x activation bits, FLOAT_BITS for float.
    """

    name: str
    kind: str
    weight_bits: int | None
    act_bits: int | None
    parameters: int
    macs: int
    bit_operations: int


@dataclass(frozen=True)
class BitsWork:
    """What the layers of one pair of bit widths compute together."""

    weight_bits: int | None
    act_bits: int | None
    layers: int
    macs: int
    bit_operations: int


@dataclass(frozen=True)
class Complexity:
    """What the network computes for one input: in all, by bit width, and by layer."""

    parameters: int
    macs: int
    bit_operations: int
    by_bits: tuple[BitsWork, ...]
    layers: tuple[LayerWork, ...]


@dataclass(frozen=True)
class TensorDifference:
    """One quantized tensor, the ONNX file against the training network.

    Attributes:
        share: the fraction of elements that differ; max_steps: by how many steps of its grid.
    """

    name: str
    elements: int
    share: float
    max_steps: int


@dataclass(frozen=True)
class Gate:
    """A demand on the export; value is None where it could not be measured."""

    name: str
    limit: float
    value: float | None
    passed: bool


@dataclass(frozen=True)
class Delivery:
    """What the file is made for, and what its runtime made of it.

    Attributes:
        target: the runtime: cpu, tensorrt or openvino.
        input: how images go in: "float32", or uint8 and where they are normalised.
        activations: how many there are that a target without zero points rounds by a larger step
            than training did, and how many in all; None for other targets.
        runtime: the target's own runtime if it ran the file, such as "OpenVINO 2026.4.1".
        agreement: that runtime against ONNX Runtime, on the same file and images.
    """

    target: str = "cpu"
    input: str = "float32"
    activations: tuple[int, int] | None = None
    runtime: str | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Record:
    """One export, with the run that it came from.

    Attributes:
        name: the recipe's name.
        file: the ONNX file's label in `latency` and `placements`.
        version: the version of qdeploy; created: the time in ISO 8601.
        settings: every setting of the quantization in words, as print(prepared) gives them.
        latency: as benchmark_files gives it, the file to compare with in front.
        training: the lines of metrics.csv, {column: value}.
        delivery: what the file is made for.
    """

    name: str
    file: str
    version: str
    created: str
    machine: Machine
    recipe: dict[str, Any]
    method: str
    settings: str
    dataset: Dataset
    accuracy: Accuracies
    agreement: Agreement | None
    size: Sizes
    complexity: Complexity
    layers: tuple[Layer, ...]
    latency: tuple[Latency, ...]
    placements: tuple[Placement, ...]
    gates: tuple[Gate, ...]
    training: tuple[dict[str, float | None], ...]
    delivery: Delivery = Delivery()

    def to_json(self) -> str:
        """The record as JSON; from_json gives it back, equal."""
        return _ADAPTER.dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Reads what to_json wrote.

        Raises:
            QdeployError: the text is not JSON, or holds no record.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the text"
            raise QdeployError(
                f"this is no report of qdeploy: {place}: {first['msg']}. "
                "Give the report.json of a run, or export the run again."
            ) from error


_ADAPTER = TypeAdapter(Record)
