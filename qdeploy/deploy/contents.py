"""What `inspect` finds in an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdeploy.deploy.seal import Seal
from qdeploy.record import Saturation

WITHOUT_SCALES = {"ConvInteger", "MatMulInteger"}
EIGHT_BITS = {"int8", "uint8"}


@dataclass(frozen=True)
class Quantized:
    """Integer codes: their type, how many bits tell them apart, their scales and zero points.

    codes   the lowest and the highest; of an activation, those that it may take
    scales  the smallest and the largest, None where the file has them elsewhere; channels: how many
    """

    type: str
    bits: int
    codes: tuple[int, int]
    scales: tuple[float, float] | None
    channels: int
    zeros: tuple[int, int]


@dataclass(frozen=True)
class FileLayer:
    """A node with a constant weight.

    name      the node's own, else its operator and number
    shape     of the weight
    stored    type of the initialiser that holds the weight, and the bytes that it takes
    all_bytes of all constants that the node is computed from: codes, scales, zero points, bias
    weight    None: float, as is activation
    saturates whether its sums may pass int16 on x86 without VNNI, see saturation.py
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
    saturates: bool = False
    unknown: str = ""

    @property
    def on_integers(self) -> bool:
        """Whether it multiplies 8-bit codes by 8-bit codes."""
        kinds = [self.weight and self.weight.type, self.activation and self.activation.type]
        return self.operator in WITHOUT_SCALES or all(kind in EIGHT_BITS for kind in kinds)


@dataclass(frozen=True)
class Port:
    """An input or output: free dimensions are names, or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Contents:
    """An ONNX file, read.

    seal        whether all is as it was sealed; added: keys that a tool put into the metadata since
    bytes       on the disk, with weights that lie beside it; weight_bytes and metadata_bytes of them
    saving      about how many of them `qdeploy pack` would save
    runs_on     the oldest ONNX Runtime, for a file of qdeploy, and why; "" where that is not known
    recipe      what it was made by; {} if the file does not say, as is origin
    metadata    all entries, as text
    """

    file: str
    seal: Seal
    added: tuple[str, ...]
    bytes: int
    weight_bytes: int
    metadata_bytes: int
    saving: int
    producer: str
    opset: dict[str, int]
    ir_version: int
    runs_on: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[FileLayer, ...]
    recipe: dict[str, Any]
    origin: dict[str, Any]
    metadata: dict[str, str]

    @property
    def intact(self) -> bool | None:
        """Whether all is as it was sealed, the metadata too; None for a file without a hash."""
        unsealed = self.seal in (Seal.LOST, Seal.NONE)
        return None if unsealed else self.seal is Seal.WHOLE

    def saturation(self, file: str) -> Saturation:
        """Which layers may saturate on x86 without VNNI; file: its label."""
        return Saturation(
            file=file,
            layers=tuple(layer.name for layer in self.layers if layer.saturates),
            quantized=sum(layer.on_integers for layer in self.layers),
        )
