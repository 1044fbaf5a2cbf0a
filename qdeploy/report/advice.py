"""What a reader should know of the file beside its figures, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.record import Record
from qdeploy.report.words import percent, significant, times


def advice(record: Record) -> tuple[str, ...]:
    """The target and how the file was found to do there; a way out where int8 is slower than float."""
    return (
        *_input(record),
        *_gates(record),
        *_tensorrt(record),
        *_openvino(record),
        *_slower(record),
    )


def _input(record: Record) -> Iterator[str]:
    if record.delivery.input != "float32":
        yield f"Input: {record.delivery.input}."


def _gates(record: Record) -> Iterator[str]:
    """Where sigmoids stand that multiply (SiLU, squeeze and excite): on codes or left in float."""
    placed = next((p for p in record.placements if p.file == record.file), None)
    kinds = (placed and placed.operators) or {}
    on_codes = sum(n for kind, n in kinds.items() if kind.endswith("QLinearSigmoid"))
    in_float = sum(n for kind, n in kinds.items() if kind.rpartition("::")[2] == "Sigmoid")
    if on_codes:
        yield (
            f"{on_codes} sigmoids compute on codes, between integer kernels: in float each would "
            "cost two conversions of its whole tensor."
        )
    if in_float and record.delivery.target == "openvino":
        yield (
            f"{in_float} sigmoids are left in float: OpenVINO computes them inside of the "
            "convolution in front. On ONNX Runtime, whose latency this is, that is slower."
        )


def _tensorrt(record: Record) -> Iterator[str]:
    if record.delivery.target != "tensorrt":
        return
    ran = {row.provider for row in record.latency if row.file == record.file}
    if "TensorrtExecutionProvider" not in ran:
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


def _openvino(record: Record) -> Iterator[str]:
    delivery = record.delivery
    if delivery.runtime is not None and delivery.agreement is not None:
        yield (
            f"Target openvino: {delivery.runtime} and ONNX Runtime agree on "
            f"{percent(delivery.agreement.top1)} of {delivery.agreement.samples:,} images; largest "
            f"logit difference {significant(delivery.agreement.max_logit_difference)}."
        )


def _slower(record: Record) -> Iterator[str]:
    rows = [row for row in record.latency if row.file == record.file]
    integers = any(layer.act_bits is not None for layer in record.layers)
    if record.delivery.target == "cpu" and integers and rows and all(r.speedup < 1 for r in rows):
        slowest = min(row.speedup for row in rows)
        yield (
            f"Integers are slower than float here ({times(slowest)}): the network is too small to "
            'earn back its conversions. act_bits = "float" keeps the packed weights, and so the '
            "size, and computes in float."
        )
