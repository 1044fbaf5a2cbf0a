"""Several runs side by side: the rows of `qdeploy report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.record import Record
from qdeploy.report.charts import Row
from qdeploy.report.progress import best_epoch
from qdeploy.report.section import Section
from qdeploy.report.words import percent, times


@dataclass(frozen=True)
class Run:
    """One run folder as it is compared.

    bits         of weights and activations, "w1a8", or "float".
    epochs       how many are planned; rows: the lines of metrics.csv, one for each that is done.
    record       its report.json; None where the run is not exported.
    is_baseline  whether this is the float training of the run before it.
    """

    name: str
    method: str
    bits: str
    epochs: int
    rows: tuple[Row, ...]
    record: Record | None
    is_baseline: bool = False

    @property
    def epochs_done(self) -> int:
        """How many lines there are."""
        return len(self.rows)

    @property
    def is_finished(self) -> bool:
        """Whether every planned epoch is done."""
        return self.epochs_done >= self.epochs

    @property
    def exported(self) -> str:
        """Whether there is a file, and if it is not of the last epoch, of which."""
        if self.is_baseline:
            return ""
        if self.record is None:
            return "not exported"
        after = len(self.record.training)
        return "exported" + (f" after epoch {after}" if after < self.epochs_done else "")

    @property
    def state(self) -> str:
        """Whether it is trained to the end, and exported."""
        words = ("" if self.is_finished else "unfinished", self.exported)
        return ", ".join(filter(None, words)) or "finished"


COLUMNS = (
    "Run", "Method", "Epochs", "Last top-1", "Best top-1",
    "ONNX top-1", "Agreement", "Bytes", "Smaller",
)  # fmt: skip


def comparison(runs: Sequence[Run]) -> Section:
    """A row for each run, in the order given; what does not apply is an empty cell."""
    return Section(
        "Runs",
        "Top-1 on the test images; bytes of the ONNX file, and how much smaller it is than in float.",
        COLUMNS,
        tuple(map(_row, runs)),
    )


def _row(run: Run) -> tuple[str, ...]:
    last, best, onnx, *others = figures(run)
    done = epochs(run) if run.is_finished else f"{epochs(run)}, unfinished"
    if run.exported != "exported":
        onnx = f"{onnx} {run.exported}".strip()
    return run.name, method(run), done, last, best, onnx, *others


def method(run: Run) -> str:
    """With its bits, "slb w1a8"."""
    return run.method if run.method == run.bits else f"{run.method} {run.bits}"


def epochs(run: Run) -> str:
    """How many are done, "20" or "3/20"."""
    return str(run.epochs_done) if run.is_finished else f"{run.epochs_done}/{run.epochs}"


def figures(run: Run) -> tuple[str, ...]:
    """Last and best top-1, then top-1, agreement, bytes and ratio of the file."""
    found = run_data(run)
    shares = (found[key] for key in ("last_top1", "best_top1", "onnx_top1", "agreement"))
    count, smaller = found["file_bytes"], found["smaller"]
    return (
        *("" if share is None else percent(share) for share in shares),
        "" if count is None else f"{count:,}",
        "" if smaller is None else times(smaller),
    )


def run_data(run: Run) -> dict[str, Any]:
    """A row as JSON has it; what does not apply is None."""
    record, best = run.record, best_epoch(run.rows)
    accuracy, agreement = (record.accuracy.onnx, record.agreement) if record else (None, None)
    count, of_float = (record.size.onnx, record.size.float) if record else (None, None)
    return {
        "name": run.name,
        "method": run.method,
        "bits": run.bits,
        "epochs": run.epochs,
        "epochs_done": run.epochs_done,
        "last_top1": run.rows[-1].get("test_top1") if run.rows else None,
        "best_top1": best["test_top1"] if best else None,
        "onnx_top1": accuracy.top1 if accuracy else None,
        "agreement": agreement.top1 if agreement else None,
        "file_bytes": count,
        "smaller": of_float / count if of_float and count else None,
        "state": run.state,
    }
