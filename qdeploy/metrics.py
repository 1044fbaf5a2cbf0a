"""What a run notes of its epochs: metrics.csv."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.scores import Score, described

Figures = Mapping[str, float]  # "loss" and the scores of the task, by name


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.csv.

    `epoch` counts from 1, `steps` are those of the run so far, `lr` is that of the epoch's
    last step. `train`: figures of the epoch while the weights moved; `test`: after it. `seconds`
    is the wall time of training and evaluation. `progress`: where the method's schedules stood,
    {name: value}.
    """

    epoch: int
    steps: int
    lr: float
    train: Figures
    test: Figures
    seconds: float
    progress: Mapping[str, float]

    def row(self) -> dict[str, float]:
        """The line of metrics.csv, {column: value}."""
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "lr": self.lr,
            **{f"train_{name}": value for name, value in self.train.items()},
            **{f"test_{name}": value for name, value in self.test.items()},
            "seconds": self.seconds,
            **self.progress,
        }

    def text(self, scores: Sequence[Score]) -> str:
        """The line that the console has; of training the headline alone."""
        return (
            f"epoch {self.epoch:3d}  lr {self.lr:.3g}"
            f"  train {described(self.train, scores[:1])}"
            f"  test {described(self.test, scores)}  {self.seconds:.1f} s"
        )


def write_metrics(path: Path, history: Sequence[EpochRecord], scores: Iterable[Score]) -> None:
    """Write the whole history as CSV with a header, atomically; a schedule may end in `inf`.

    scores   what the header names where there is no epoch yet
    """
    names = ["loss", *(score.name for score in scores)]
    none = dict.fromkeys(names, 0.0)
    header = EpochRecord(0, 0, 0.0, none, none, 0.0, {}).row() if not history else {}
    rows = [record.row() for record in history]
    columns = dict.fromkeys([*header, *(name for row in rows for name in row)])
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_metrics(path: Path) -> tuple[dict[str, float | None], ...]:
    """The lines of a metrics.csv by column; an empty cell is None. No file is no line.

    Raises QdeployError if the file holds anything but numbers below its header.
    """
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if "epoch" not in (rows.fieldnames or ["epoch"]):
                raise ValueError("it has no column 'epoch'")
            return tuple(
                {key: float(text) if text else None for key, text in row.items()} for row in rows
            )
    except (OSError, ValueError, TypeError, csv.Error) as error:  # TypeError: cells too many
        raise QdeployError(
            f"{path} is no table of numbers ({error}); `qdeploy train --resume` on its run "
            "writes it anew from the checkpoint"
        ) from error
