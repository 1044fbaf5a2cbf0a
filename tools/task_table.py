"""The table of docs/tasks.md, from the figures that `tools/reproduce.py tasks` kept."""

from __future__ import annotations

from accuracy import Rows, by_row, widths
from plans import Figures, Plan

from qdeploy.scores import Score

HEAD = (
    "example", "bits", "epochs", "score", "float", "prepared", "file", "codes that differ", "bytes",
    "smaller than float", "p50 ms of float", "of the file",
)  # fmt: skip


def of_tasks() -> Rows:
    """A line for each quantized row, in the order of the plan."""
    plan = Plan.load("tasks")
    measured = {name: figures for name, [figures] in by_row(plan.figures()).items()}
    starts = {name: row.starts_from for name, row in plan.rows.items()}
    return [
        HEAD,
        *(
            _row(figures, measured[start])
            for name, figures in measured.items()
            if (start := starts[name]) is not None
        ),
    ]


def _row(figures: Figures, start: Figures) -> tuple[str, ...]:
    score, accuracy, codes = Score(**figures["scores"][0]), figures["accuracy"], figures["codes"]
    size, latency = figures["size"], figures["latency"]
    return (
        figures["row"].rpartition("-")[0].replace("-", " "),
        widths(figures),
        f"{start['epochs']} + {figures['epochs']}",
        score.title,
        *(score.text(accuracy[form][score.name]) for form in ("float", "prepared", "onnx")),
        f"{codes['differing']:,} of {codes['compared']:,}",
        f"{size['onnx']:,}",
        f"{size['float'] / size['onnx']:.1f}x",
        *(f"{latency[file]:.2f}" for file in ("float.onnx", "model.onnx")),
    )
