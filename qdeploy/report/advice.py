"""What a reader should know of the file beside its figures, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.deploy.target import find_target
from qdeploy.deploy.targets import available
from qdeploy.record import Record
from qdeploy.report.processors import warning
from qdeploy.report.summary import apart, decided
from qdeploy.report.words import decibel, percent, times


def advice(record: Record) -> tuple[str, ...]:
    """The target and how the file was found to do there; a way out where int8 is slower than float."""
    return (
        *_input(record),
        *_gates(record),
        *_target(record),
        *_runtime(record),
        *_saturating(record),
        *_slower(record),
    )


def _input(record: Record) -> Iterator[str]:
    if record.delivery.input != "float32":
        yield f"Input: {record.delivery.input}."


def _gates(record: Record) -> Iterator[str]:
    """Where sigmoids stand that multiply (SiLU, squeeze and excite), if on codes."""
    kinds = (record.placement and record.placement.operators) or {}
    on_codes = sum(n for kind, n in kinds.items() if kind.endswith("QLinearSigmoid"))
    if on_codes:
        yield (
            f"{on_codes} sigmoids compute on codes, between integer kernels: in float each would "
            "cost two conversions of its whole tensor."
        )


def _target(record: Record) -> Iterator[str]:
    """What the target itself says; nothing where it is not there, as in a record of another version."""
    if record.delivery.target in available():
        yield from find_target(record.delivery.target).advice(record)


def _runtime(record: Record) -> Iterator[str]:
    """How another runtime that ran the file as well agrees with ONNX Runtime."""
    delivery = record.delivery
    if delivery.runtime is not None and delivery.agreement is not None:
        found = delivery.agreement
        both = f"Target {delivery.target}: {delivery.runtime} and ONNX Runtime"
        agree = f"agree to {decibel(found.sqnr)}"
        if found.share is not None:
            agree = f"agree on {percent(found.share)} {decided(found).removesuffix(' in the same class')}"
        yield f"{both} {agree}; {apart(found)}."


def _saturating(record: Record) -> Iterator[str]:
    if record.saturation is not None and record.saturation.layers:
        yield warning(record.saturation, record.machine)


def _slower(record: Record) -> Iterator[str]:
    name, rows = record.delivery.target, record.timings
    integers = any(layer.act_bits is not None for layer in record.layers)
    slower = integers and bool(rows) and all(row.speedup < 1 for row in rows)
    if slower and name in available() and find_target(name).is_onnx_runtime:
        slowest = min(row.speedup for row in rows)
        yield (
            f"Integers are slower than float here ({times(slowest)}): the network is too small to "
            'earn back its conversions. act_bits = "float" keeps the packed weights, and so the '
            "size, and computes in float."
        )
