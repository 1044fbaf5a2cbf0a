"""Several runs side by side: the rows of `qdeploy report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.record import Record
from qdeploy.report.charts import Row
from qdeploy.report.progress import best_epoch
from qdeploy.report.section import Section
from qdeploy.report.words import capitalized, percent, times
from qdeploy.scores import CLASSIFICATION, Score


@dataclass(frozen=True)
class Run:
    """One run folder as it is compared.

    bits         of weights and activations, "w1a8", or "float".
    epochs       how many are planned; rows: the lines of metrics.csv, one for each that is done.
    record       its report.json; None where the run is not exported.
    is_baseline  whether this is the float training of the run before it.
    scores       what its task is judged by, the headline first.
    """

    name: str
    method: str
    bits: str
    epochs: int
    rows: tuple[Row, ...]
    record: Record | None
    is_baseline: bool = False
    scores: tuple[Score, ...] = CLASSIFICATION

    @property
    def headline(self) -> Score:
        """What the table shows."""
        return self.scores[0]

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


def columns(runs: Sequence[Run]) -> tuple[str, ...]:
    """The figures are called after the score that all runs share; "" where tasks differ."""
    of = shared_title(runs)
    figures = (f"{form} {of}".strip() for form in ("Last", "Best", "ONNX"))
    return ("Run", "Method", "Epochs", *figures, "Agreement", "Bytes", "Smaller")


def shared_title(runs: Sequence[Run]) -> str:
    titles = {run.headline.title for run in runs}
    return titles.pop() if len(titles) == 1 else ""


def comparison(runs: Sequence[Run]) -> Section:
    """A row for each run, in the order given; what does not apply is an empty cell."""
    return Section(
        "Runs",
        f"{capitalized(shared_title(runs)) or 'Of each its own score'} on the test data; bytes of the ONNX "
        "file, and how much smaller it is than in float.",
        columns(runs),
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
    """Last and best of the headline, then the file's, its agreement, bytes and ratio."""
    found, name = run_data(run), run.headline.name
    values = (found[f"{form}_{name}"] for form in ("last", "best", "onnx"))
    agreement, count, smaller = found["agreement"], found["file_bytes"], found["smaller"]
    return (
        *("" if value is None else run.headline.text(value) for value in values),
        "" if agreement is None else percent(agreement),
        "" if count is None else f"{count:,}",
        "" if smaller is None else times(smaller),
    )


def run_data(run: Run) -> dict[str, Any]:
    """A row as JSON has it; what does not apply is None."""
    record, name, best = run.record, run.headline.name, best_epoch(run.rows, run.headline)
    accuracy, agreement = (record.accuracy.onnx, record.agreement) if record else (None, None)
    count, of_float = (record.size.onnx, record.size.float) if record else (None, None)
    return {
        "name": run.name,
        "method": run.method,
        "bits": run.bits,
        "epochs": run.epochs,
        "epochs_done": run.epochs_done,
        f"last_{name}": run.rows[-1].get(f"test_{name}") if run.rows else None,
        f"best_{name}": best[f"test_{name}"] if best else None,
        f"onnx_{name}": accuracy.get(name) if accuracy else None,
        "agreement": agreement.share if agreement else None,
        "file_bytes": count,
        "smaller": of_float / count if of_float and count else None,
        "state": run.state,
    }
