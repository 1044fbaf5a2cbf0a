"""What a run notes: the running means of an epoch, its record, metrics.csv."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write

# Behind them stand the values of the method's schedules.
COLUMNS = (
    *("epoch", "steps", "lr"),
    *("train_loss", "train_top1", "train_top5", "train_error1"),
    *("test_loss", "test_top1", "test_top5", "test_error1"),
    "seconds",
)


@dataclass(frozen=True)
class Metrics:
    """Means over `samples` images: cross entropy in nats, accuracies as fractions of 1."""

    loss: float
    top1: float
    top5: float
    samples: int


@dataclass
class Running:
    """Sums over the images trained so far in an epoch."""

    loss: float = 0.0
    hits: int = 0
    hits5: int = 0
    samples: int = 0

    def add(self, loss: float, hits: int, hits5: int, samples: int) -> None:
        """Count a batch: its mean loss, and how many images were right, also among the first 5."""
        self.loss += loss * samples
        self.hits += hits
        self.hits5 += hits5
        self.samples += samples

    @property
    def means(self) -> Metrics:
        n = self.samples
        return Metrics(self.loss / n, self.hits / n, self.hits5 / n, n)


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.csv: losses in nats, accuracies as fractions of 1.

    `epoch` counts from 1, `steps` are those of the run so far, `lr` is that of the epoch's
    last step, the training figures are means over the epoch while the weights moved, `seconds`
    is the wall time of training and evaluation. `progress`: where the method's schedules stood,
    {name: value}.
    """

    epoch: int
    steps: int
    lr: float
    train_loss: float
    train_top1: float
    train_top5: float
    test_loss: float
    test_top1: float
    test_top5: float
    seconds: float
    progress: Mapping[str, float]

    @property
    def train_error1(self) -> float:
        return 1 - self.train_top1

    @property
    def test_error1(self) -> float:
        return 1 - self.test_top1

    def row(self) -> dict[str, float]:
        """The line of metrics.csv, {column: value}."""
        return {name: getattr(self, name) for name in COLUMNS} | dict(self.progress)

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:3d}  lr {self.lr:.3g}"
            f"  train loss {self.train_loss:.4f}  top-1 {self.train_top1:.2%}"
            f"  test loss {self.test_loss:.4f}  top-1 {self.test_top1:.2%}"
            f"  top-5 {self.test_top5:.2%}  {self.seconds:.1f} s"
        )


def write_metrics(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write the whole history as CSV with a header, atomically; a schedule may end in `inf`."""
    rows = [record.row() for record in history]
    columns = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
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
