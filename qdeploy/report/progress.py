"""How far a run has come, for the page that follows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from qdeploy.report.charts import Row
from qdeploy.report.summary import Headline
from qdeploy.report.words import NOT_MEASURED, duration, percent, significant


@dataclass(frozen=True)
class Progress:
    """The lines of metrics.csv so far, as a page written at the time `written` shows them.

    epochs  how many are planned.
    going   False once training has ended or was stopped.
    """

    rows: Sequence[Row]
    epochs: int
    going: bool
    written: datetime

    @property
    def status(self) -> str:
        """One word and the epochs."""
        done = len(self.rows)
        if self.going:
            return f"Training: {done} of {self.epochs} epochs"
        if done < self.epochs:
            return f"Stopped after {done} of {self.epochs} epochs"
        return f"Finished: {done} of {self.epochs} epochs"

    @property
    def what_next(self) -> str:
        """What a reader can expect or do."""
        if self.going:
            return "; this page reloads itself"
        return "; qdeploy train --resume goes on with it" if len(self.rows) < self.epochs else ""

    @property
    def reload_seconds(self) -> float:
        """After how long an open page looks again: about an epoch, from 2 to 30 seconds."""
        return min(max(self._seconds or 10.0, 2.0), 30.0)

    @property
    def patience_seconds(self) -> float:
        """How old a page may be and still be believed: ten epochs, or a day before the first."""
        return max(10 * self._seconds, 120.0) if self._seconds else 86400.0

    def headlines(self) -> tuple[Headline, ...]:
        """The figures of the latest epoch; none before the first."""
        if not self.rows:
            return ()
        last = self.rows[-1]
        return (
            Headline("Epoch", f"{len(self.rows)} of {self.epochs}", self._time()),
            Headline("Test top-1", percent(last.get("test_top1")), self._best()),
            Headline(
                "Test loss", _number(last, "test_loss"), f"train {_number(last, 'train_loss')}"
            ),
            Headline("Learning rate", _number(last, "lr"), "of the last step"),
        )

    @property
    def _seconds(self) -> float | None:
        """The mean time of an epoch; None where no line has one."""
        times = [row["seconds"] for row in self.rows if row.get("seconds") is not None]
        return sum(filter(None, times)) / len(times) if times else None

    def _time(self) -> str:
        if self._seconds is None:
            return ""
        each = f"{duration(self._seconds)} an epoch"
        left = (self.epochs - len(self.rows)) * self._seconds
        return f"{each}; {duration(left)} to go" if self.going and left > 0 else each

    def _best(self) -> str:
        best = best_epoch(self.rows)
        if best is None:
            return ""
        return f"best {percent(best['test_top1'])}, after epoch {best['epoch']:.0f}"


def best_epoch(rows: Sequence[Row]) -> Row | None:
    """The line of the highest test top-1, the earlier one of equals; None where none has one."""
    measured = [row for row in rows if row.get("test_top1") is not None]
    return max(measured, key=lambda row: row["test_top1"] or 0.0, default=None)


def _number(row: Row, column: str) -> str:
    value = row.get(column)
    return NOT_MEASURED if value is None else significant(value)
