"""The gates of a recipe's [export] against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qdeploy.benchmark.providers import CPU
from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.recipe import ExportSection
from qdeploy.record import (
    Accuracies,
    Agreement,
    Exactness,
    Figures,
    Gate,
    Machine,
    Saturation,
)
from qdeploy.scores import Score
from qdeploy.tasks import Task


def check_gates(
    section: ExportSection,
    accuracy: Accuracies,
    agreement: Agreement | None,
    exactness: Exactness | None,
    size: int,
    scores: Sequence[Score],
) -> tuple[Gate, ...]:
    """The gates that are set, in the order of the recipe's keys; what was not measured does not pass.

    max_drop is of the headline against the float network, or against the integers in PyTorch where
    there is no float one: in percentage points of a share, else in its unit. min_agreement is a share,
    min_sqnr in dB, max_size in bytes.
    """
    measured = {
        "max_drop": drop(accuracy, scores[0]),
        "min_agreement": None if agreement is None else agreement.share,
        "min_sqnr": None if agreement is None else agreement.sqnr,
        "max_differing": None if exactness is None else exactness.differing,
        "max_size": size,
    }
    found = []
    for name, value in measured.items():
        limit = getattr(section, name)
        if limit is not None:
            found.append(Gate(name, limit, value, passes(name, value, limit)))
    return tuple(found) + tuple(on_scores(section.gates, accuracy.onnx or {}, scores))


def passes(name: str, value: float | None, limit: float) -> bool:
    """Whether a value is at least, of "min_...", or at most its limit; what is no number is neither."""
    return value is not None and (value >= limit if name.startswith("min") else value <= limit)


def check_possible(section: ExportSection, task: Task, scores: Sequence[Score]) -> None:
    """Errors: QdeployError for a gate on what the task does not measure."""
    names = [score.name for score in scores]
    for name in section.gates:
        if name not in names:
            raise QdeployError(
                f"export.gates.{name}: the task has no such score.{did_you_mean(name, names)} It has "
                f"{', '.join(names)}"
            )
    if section.min_agreement is not None and task.decides is None:
        raise QdeployError(
            "export.min_agreement is a share of decisions, and outputs of this task are values: set "
            "export.min_sqnr, in dB, in its place"
        )


def on_scores(
    limits: Mapping[str, float], found: Figures, scores: Sequence[Score]
) -> Iterator[Gate]:
    """The least of a score where more is better, else the most."""
    known = {score.name: score for score in scores}
    for name, limit in limits.items():
        value, score = found.get(name), known[name]
        passed = value is not None and score.key(value) >= score.key(limit)
        yield Gate(f"{'min' if score.higher_is_better else 'max'}_{name}", limit, value, passed)


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


def drop(accuracy: Accuracies, score: Score) -> float | None:
    """What the file lost of a score, see Score.drop."""
    reference = accuracy.float or accuracy.trained
    if reference is None or accuracy.onnx is None:
        return None
    before, after = reference.get(score.name), accuracy.onnx.get(score.name)
    return None if before is None or after is None else score.drop(before, after)
