"""The gates of a recipe's [export] against what was measured."""

from __future__ import annotations

from qdeploy.benchmark.providers import CPU
from qdeploy.recipe import ExportSection
from qdeploy.record import Accuracies, Agreement, Exactness, Gate, Machine, Saturation


def check_gates(
    section: ExportSection,
    accuracy: Accuracies,
    agreement: Agreement | None,
    exactness: Exactness | None,
    size: int,
) -> tuple[Gate, ...]:
    """The gates that are set, in the order of the recipe's keys; what was not measured does not pass.

    max_drop is in percentage points of top-1 against the float network, or against the integers
    in PyTorch where there is no float one; min_agreement a share; max_size in bytes.
    """
    measured = {
        "max_drop": top1_drop(accuracy),
        "min_agreement": None if agreement is None else agreement.top1,
        "max_differing": None if exactness is None else exactness.differing,
        "max_size": size,
    }
    found = []
    for name, value in measured.items():
        limit = getattr(section, name)
        if limit is not None:
            worst = value is None or (value < limit if name.startswith("min") else value > limit)
            found.append(Gate(name, limit, value, not worst))
    return tuple(found)


def with_promises(
    section: ExportSection, exactness: Exactness | None, machine: Machine, saturation: Saturation
) -> ExportSection:
    """The section with `max_differing` = 0 where nobody set it and the formulas of the kernels hold.

    They are those of ONNX Runtime's CPU provider on x86 from AVX2 on, where no sum saturates.
    """
    exact_here = (
        exactness is not None
        and exactness.provider == CPU
        and "AVX2" in machine.instructions
        and not (machine.saturates and saturation.layers)
    )
    promised = section.max_differing is None and exact_here
    return section.model_copy(update={"max_differing": 0}) if promised else section


def top1_drop(accuracy: Accuracies) -> float | None:
    """Percentage points of top-1 that the file lost."""
    reference = accuracy.float or accuracy.trained
    if reference is None or accuracy.onnx is None:
        return None
    return 100 * (reference.top1 - accuracy.onnx.top1)
