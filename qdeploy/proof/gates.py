"""The gates of a recipe's [export] against what was measured."""

from __future__ import annotations

from qdeploy.recipe import ExportSection
from qdeploy.record import Accuracies, Agreement, Exactness, Gate


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


def top1_drop(accuracy: Accuracies) -> float | None:
    """Percentage points of top-1 that the file lost."""
    reference = accuracy.float or accuracy.trained
    if reference is None or accuracy.onnx is None:
        return None
    return 100 * (reference.top1 - accuracy.onnx.top1)
