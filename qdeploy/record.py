"""The record of one export: every number that the report shows, as data.

Shares and accuracies are fractions of 1, sizes are bytes, times are milliseconds. What was not
measured is None, or an empty tuple.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError

from qdeploy.errors import QdeployError
from qdeploy.scores import CLASSIFICATION, Score

INFINITE = ConfigDict(ser_json_inf_nan="strings")  # JSON has no number for it
FLOAT_BITS = 32  # what float counts as in bit operations


@dataclass(frozen=True)
class Machine:
    """What a reader must know to compare a latency.

    cores         logical cores that this process may use.
    gpu           the name of the first NVIDIA GPU, None where there is none.
    instructions  sets that integer kernels use, such as "AVX2" and "VNNI"; () where not known.
    saturates     whether integer kernels add pairs of products in int16 here; None in older records.
    """

    cpu: str
    cores: int
    gpu: str | None
    system: str
    python: str
    onnxruntime: str
    instructions: tuple[str, ...] = ()
    saturates: bool | None = None


@dataclass(frozen=True)
class Latency:
    """One file at one batch size: times of a whole run, from inputs to outputs where it computes.

    file        the file's label, its name unless two files share it.
    speedup     the first file's median over this file's, both from the same rounds.
    rounds      how many runs the percentiles are taken from.
    copied_ms   the median on a GPU with inputs and outputs in host memory; None on a CPU, under a CUDA
                graph, and in older records, all of whose times are such.
    cuda_graph  whether the runs were replays of a CUDA graph.
    """

    file: str
    batch: int
    provider: str
    threads: int
    file_bytes: int
    load_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float
    rounds: int
    copied_ms: float | None = None
    cuda_graph: bool = False

    @property
    def data(self) -> str:
        """Where inputs and outputs lay: "in host memory", "on the GPU", or "copied in each run"."""
        if self.provider == "CPUExecutionProvider":
            return "in host memory"
        there = self.copied_ms is not None or self.cuda_graph
        return "on the GPU" if there else "copied in each run"


@dataclass(frozen=True)
class Kernel:
    """One node that ONNX Runtime ran.

    layer     the node of the file that it began with; None for what ONNX Runtime added.
    operator  as ONNX Runtime calls it: "QLinearConv".
    reads     the type of its first input, as ONNX Runtime calls it: "uint8", "float".
    writes    the type of its first output.
    ms        the median over runs.
    share     of the time of all kernels; None on a GPU, where this times the launch alone.
    """

    layer: str | None
    operator: str
    provider: str
    reads: str
    writes: str
    ms: float
    share: float | None


@dataclass(frozen=True)
class ProductRun:
    """One convolution or matrix product of a file, and what ran it.

    layer      the node's name, or its operator and number.
    operator   what the file calls for: "Conv".
    quantized  whether the file gives it a quantized weight and a quantized input.
    kernel     what computed it, None where that was part of another kernel.
    integer    whether that kernel computed in integers.
    reason     why not, for a quantized one; and why so, for a float one.
    """

    layer: str
    operator: str
    quantized: bool
    kernel: str | None
    integer: bool
    reason: str | None


@dataclass(frozen=True)
class Coverage:
    """How many of the quantized products of a file ran on integer kernels."""

    integer: int
    quantized: int


FLOAT_PRODUCTS = {
    "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "GRU", "LSTM", "MatMul",
    "RNN",
}  # fmt: skip
INTEGER_PRODUCTS = {
    "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "QGemm",
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """What ONNX Runtime made of one file.

    file       the file's label.
    operators  {operator: count} of the graph after all optimisations; an operator outside
               ONNX's own domain is "domain::operator" ("com.microsoft::QGemm"). None on TensorRT,
               which compiles operators into engines that cannot be listed.
    providers  {provider: {operator: count}} as the nodes were dealt out, which is before
               QuantizeLinear and DequantizeLinear are fused into the operator between them. None
               where ONNX Runtime is older than 1.24 and does not tell.
    kernels    what ran, in order, with times; empty in records of older versions.
    products   every convolution, matrix product and recurrent layer of the file; none on TensorRT.
    coverage   of the quantized ones; None on TensorRT, and in records of older versions.
    """

    file: str
    operators: dict[str, int] | None
    providers: dict[str, dict[str, int]] | None
    kernels: tuple[Kernel, ...] = ()
    products: tuple[ProductRun, ...] = ()
    coverage: Coverage | None = None

    @property
    def integer_kernels(self) -> dict[str, int]:
        """{kernel: count} of the operators that compute on integers; domains are left out."""
        kernels = self._kernels().items()
        return {k: n for k, n in kernels if k.startswith("QLinear") or k in INTEGER_PRODUCTS}

    @property
    def float_kernels(self) -> dict[str, int]:
        """{kernel: count} of convolutions, matrix products and recurrent layers that compute in float."""
        return {k: n for k, n in self._kernels().items() if k in FLOAT_PRODUCTS}

    @property
    def ran_on(self) -> tuple[str, ...]:
        """The providers that something ran on; of older records, those that nodes were dealt out to."""
        ran = dict.fromkeys(kernel.provider for kernel in self.kernels)
        return tuple(ran or self.providers or ())

    def _kernels(self) -> dict[str, int]:
        kernels: Counter[str] = Counter()
        for operator, count in (self.operators or {}).items():
            kernels[operator.rpartition("::")[2]] += count
        return kernels


@dataclass(frozen=True)
class Saturation:
    """Layers of a file whose sums may pass int16 on x86 without VNNI, which then come out wrong.

    file       the file's label.
    layers     their names.
    quantized  how many layers of the file multiply codes by codes.
    """

    file: str
    layers: tuple[str, ...]
    quantized: int


@dataclass(frozen=True)
class BenchmarkResult:
    """Several files on one machine: a latency per file and batch size, and what is said of each file.

    saturation  one for each file; () if the files were not read for it.
    """

    machine: Machine
    latency: tuple[Latency, ...]
    placements: tuple[Placement, ...]
    saturation: tuple[Saturation, ...] = ()

    def __str__(self) -> str:
        """A line for each file and batch size."""
        first = self.latency[0].file
        lines = [
            f"{row.file}  batch {row.batch}: {row.p50_ms:.3g} ms, {row.file_bytes:,} bytes"
            + ("" if row.file == first else f", {row.speedup:.2f} times as fast as {first}")
            for row in self.latency
        ]
        return "\n".join([self.machine.cpu, *lines])


@dataclass(frozen=True)
class Dataset:
    """The data that accuracy and agreement were measured on."""

    title: str
    test_samples: int


Figures = dict[str, float | None]


@dataclass(frozen=True)
class Accuracies:
    """The four forms of a network, from the user's own to the ONNX file: {score: value} of each.

    float     the float network.
    prepared  the training network in evaluation, whose biases are still floats.
    trained   the integers in PyTorch (`convert`), which training tests.
    onnx      the file.
    """

    float: Figures | None
    trained: Figures | None
    onnx: Figures | None
    prepared: Figures | None = None


@dataclass(frozen=True)
class Agreement:
    """Two forms of the network over `samples` inputs: the ONNX file against its integers in PyTorch.

    share    of the decisions that are the same; None where outputs are values and decide nothing.
    largest  absolute difference of two output values, and the mean of all.
    sqnr     dB of the outputs' power over that of the difference; infinite where they are equal,
             None in older records.
    decides  what a decision is on: "image" for a class, "pixel" for a mask.
    decided  how many decisions there were; None in older records, which have one an input.
    """

    samples: int
    share: Annotated[float | None, Field(validation_alias=AliasChoices("share", "top1"))]
    largest: Annotated[
        float, Field(validation_alias=AliasChoices("largest", "max_logit_difference"))
    ]
    mean: Annotated[float, Field(validation_alias=AliasChoices("mean", "mean_logit_difference"))]
    sqnr: float | None = None
    decides: str | None = "image"
    decided: int | None = None

    __pydantic_config__: ClassVar[ConfigDict] = INFINITE


@dataclass(frozen=True)
class Sizes:
    """Bytes of the ONNX file, of its float32 and its unpacked int8 twin, and the lower bound.

    bound  log2(levels in use) x weights / 8, and 4 bytes for each scale, bias and float weight.
    """

    onnx: int
    float: int | None
    int8: int | None
    bound: int | None


@dataclass(frozen=True)
class ShippedLayer:
    """One layer as it ships.

    weight_bits   bits of a code; None for a layer left in float, as is act_bits.
    weights       how many weights there are.
    levels        {code: how many weights hold it}, empty for a layer left in float.
    weight_bytes  what its codes, scales and biases take in the file; what layers share counts
                  for each.
    bound_bytes   the layer's part of Sizes.bound.
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

    weight_bits     None for float, as is act_bits.
    parameters      those of the float layer and of the BatchNorm joined with it.
    macs            multiply-accumulates: products of a convolution, Linear layer or matrix product.
    bit_operations  macs x weight bits x activation bits, FLOAT_BITS for float.
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
    """One quantized tensor, the ONNX file against the integers in PyTorch.

    differing  how many elements differ; max_steps: by how many steps of its grid.
    integer    whether integer kernels made it; what float operators made may differ.
    """

    name: str
    elements: int
    differing: int
    max_steps: int
    integer: bool

    @property
    def share(self) -> float:
        """The fraction of elements that differ."""
        return self.differing / max(1, self.elements)


@dataclass(frozen=True)
class Exactness:
    """Every quantized tensor of the file against that of the integers in PyTorch.

    samples   how many inputs.
    provider  of ONNX Runtime that ran the file.
    """

    samples: int
    provider: str
    tensors: tuple[TensorDifference, ...]

    @property
    def from_kernels(self) -> tuple[TensorDifference, ...]:
        """The tensors that integer kernels made."""
        return tuple(tensor for tensor in self.tensors if tensor.integer)

    @property
    def compared(self) -> int:
        """How many codes these hold."""
        return sum(tensor.elements for tensor in self.from_kernels)

    @property
    def differing(self) -> int:
        """How many of them differ."""
        return sum(tensor.differing for tensor in self.from_kernels)

    @property
    def behind_float(self) -> tuple[TensorDifference, ...]:
        """The tensors that float operators made."""
        return tuple(tensor for tensor in self.tensors if not tensor.integer)

    def __str__(self) -> str:
        """As "0 of 97,241 codes differ in 61 tensors; behind float operators 3 of 99 in 2, by 1 at most"."""
        text = f"{_differing(self.from_kernels)} codes differ in {_tensors(self.from_kernels)}"
        if self.behind_float:
            most = max(tensor.max_steps for tensor in self.behind_float)
            text += (
                f"; behind float operators {_differing(self.behind_float)} in "
                f"{_tensors(self.behind_float)}, by {most} at most"
            )
        return text


def _differing(tensors: tuple[TensorDifference, ...]) -> str:
    found, all_of_them = (sum(getattr(t, n) for t in tensors) for n in ("differing", "elements"))
    return f"{found:,} of {all_of_them:,}"


def _tensors(tensors: tuple[TensorDifference, ...]) -> str:
    return f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}"


@dataclass(frozen=True)
class ProvenSize:
    """One size of the axes that a file leaves open, the file against the integers in PyTorch.

    size       of the open axes, as "24x16"
    inputs     how many
    codes      how many were compared, and `differing` of them differ; None for other targets than cpu
    largest    difference of two outputs; 0.0 where all are equal bit for bit
    """

    size: str
    inputs: int
    codes: int | None
    differing: int | None
    largest: float


@dataclass(frozen=True)
class Gate:
    """A demand on the export; value is None where it could not be measured."""

    name: str
    limit: float
    value: float | None
    passed: bool

    __pydantic_config__: ClassVar[ConfigDict] = INFINITE


@dataclass(frozen=True)
class Delivery:
    """What the file is made for, and what its runtime made of it.

    target       the runtime, by its name in deploy/targets.
    input        how images go in: "float32", or uint8 and where they are normalised.
    activations  how many there are that a target without zero points rounds by a larger step
                 than training did, and how many in all; None for other targets.
    runtime      the target's own runtime if it ran the file, such as "OpenVINO 2026.4.1".
    agreement    that runtime against ONNX Runtime, on the same file and images.
    runs_on      the oldest ONNX Runtime for the file, and why; "" where that is not known.
    """

    target: str = "cpu"
    input: str = "float32"
    activations: tuple[int, int] | None = None
    runtime: str | None = None
    agreement: Agreement | None = None
    runs_on: str = ""


@dataclass(frozen=True)
class Record:
    """One export, with the run that it came from.

    name      the recipe's name.
    file      the ONNX file's label in `latency` and `placements`.
    version   the version of qdeploy; created: the time in ISO 8601.
    settings  every setting of the quantization in words, as print(prepared) gives them.
    latency   as benchmark_files gives it, the file to compare with in front.
    training  the lines of metrics.csv, {column: value}.
    delivery  what the file is made for.
    exactness of the codes; None for a float network, and for other targets.
    saturation  of the exported file; None in older records.
    task      what the network is for; scores: what it is judged by, the headline first.
    checked   whether prepare compared what trains with the float network; None of float and in older
              records.
    sizes     that the file was run on, of which the first is training's; () where its sizes are fixed.
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
    layers: tuple[ShippedLayer, ...]
    latency: tuple[Latency, ...]
    placements: tuple[Placement, ...]
    gates: tuple[Gate, ...]
    training: tuple[dict[str, float | None], ...]
    delivery: Delivery = Delivery()
    exactness: Exactness | None = None
    saturation: Saturation | None = None
    checked: bool | None = None
    task: str = "classification"
    scores: tuple[Score, ...] = CLASSIFICATION
    sizes: tuple[ProvenSize, ...] = ()

    @property
    def headline(self) -> Score:
        """The score that tables and gates are of."""
        return self.scores[0]

    @property
    def placement(self) -> Placement | None:
        """What ONNX Runtime made of the exported file, None where that was not measured."""
        return next((placed for placed in self.placements if placed.file == self.file), None)

    @property
    def timings(self) -> tuple[Latency, ...]:
        """The latencies of the exported file."""
        return tuple(row for row in self.latency if row.file == self.file)

    def to_json(self) -> str:
        """The record as JSON; from_json gives it back, equal."""
        return _ADAPTER.dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Reads what to_json wrote. Errors: QdeployError if the text is not JSON, or holds no record."""
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
