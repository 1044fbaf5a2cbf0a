"""How far a run has come, for the page that follows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from qdeploy.report.charts import Row
from qdeploy.report.summary import Headline
from qdeploy.report.words import NOT_MEASURED, duration, significant
from qdeploy.scores import CLASSIFICATION, Score


@dataclass(frozen=True)
class Progress:
    """The lines of metrics.csv so far, as a page written at the time `written` shows them.

    scores  what the task is judged by, the headline first.
    epochs  how many are planned.
    going   False once training has ended or was stopped.
    """

    rows: Sequence[Row]
    epochs: int
    going: bool
    written: datetime
    scores: Sequence[Score] = CLASSIFICATION

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
            Headline(f"Test {self.headline.title}", self._text(last), self._best()),
            Headline(
                "Test loss", _number(last, "test_loss"), f"train {_number(last, 'train_loss')}"
            ),
            Headline("Learning rate", _number(last, "lr"), "of the last step"),
        )

    @property
    def headline(self) -> Score:
        return self.scores[0]

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
        best = best_epoch(self.rows, self.headline)
        return "" if best is None else f"best {self._text(best)}, after epoch {best['epoch']:.0f}"

    def _text(self, row: Row) -> str:
        value = row.get(f"test_{self.headline.name}")
        return NOT_MEASURED if value is None else self.headline.text(value)


def best_epoch(rows: Sequence[Row], score: Score) -> Row | None:
    """The line that tested best, the earlier one of equals; None where none has the score."""
    tested = [(value, row) for row in rows if (value := row.get(f"test_{score.name}")) is not None]
    return max(tested, key=lambda pair: score.key(pair[0]), default=(None, None))[1]


def _number(row: Row, column: str) -> str:
    value = row.get(column)
    return NOT_MEASURED if value is None else significant(value)
