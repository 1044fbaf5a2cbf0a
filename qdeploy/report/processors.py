"""What a file gives on other processors than the one that it was proven on, in words."""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.record import Machine, Placement, Record, Saturation
from qdeploy.report.words import kernels, plural

# ONNX Runtime's sources have fixed-point kernels of these for ARM; elsewhere they compute in float32.
FIXED_POINT_ON_ARM = {"QLinearAdd", "QLinearGlobalAveragePool"}

WAYS_OUT = (
    "Prepare the network with reduce_range = true, or load the file with "
    "session.x64quantprecision = 1, which is exact and slower."
)


def saturating(found: Saturation) -> str:
    """ "8 of 21 layers may saturate on x86 without VNNI"."""
    if not found.layers:
        return "no layer can saturate on x86 without VNNI"
    count = f"{len(found.layers)} of {plural(found.quantized, 'layer')}"
    return f"{count} may saturate on x86 without VNNI"


def warning(found: Saturation, machine: Machine) -> str:
    """What a user of a file with such layers must know."""
    here = ", and this processor is one: what they give here is wrong" if machine.saturates else ""
    return f"{saturating(found)}{here}. {WAYS_OUT}"


def processors(record: Record) -> Iterator[tuple[str, str]]:
    """Each kind of processor, and what the file gives there against the one that it was proven on."""
    machine = record.machine
    sets = f" ({', '.join(machine.instructions)})" if machine.instructions else ""
    yield f"{machine.cpu}{sets}", "The file was run here."
    yield "x86 with VNNI or AMX", "Integer kernels give the same codes."
    yield "x86 with AVX2 or AVX512 alone", _without_vnni(record.saturation)
    yield "ARM", _on_arm(record.placement)


def _without_vnni(found: Saturation | None) -> str:
    if found is None:
        return "Not known: this report is of an older version."
    if not found.layers:
        return "Integer kernels give the same codes: no sum of two products passes int16."
    return f"{saturating(found)}: {', '.join(found.layers)}."


def _on_arm(placed: Placement | None) -> str:
    """From ONNX Runtime's sources: nothing of qdeploy was run there."""
    integer = placed.integer_kernels if placed else {}
    others = {kind: count for kind, count in integer.items() if kind in FIXED_POINT_ON_ARM}
    if not others:
        return "By ONNX Runtime's sources integer kernels give the same codes; not run."
    return (
        f"{kernels(others)} compute in fixed point there: their codes may be a step off, and what is "
        "computed from them more. The proof does not cover it."
    )
