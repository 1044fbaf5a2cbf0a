"""Score: what the outputs of a network are judged by, in words and numbers. No torch is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write

SHARE = "%"


@dataclass(frozen=True)
class Score:
    """One figure of a task. The first of a task is its headline: `best`, drops and tables are of it.

    name              its column in metrics.csv, behind "train_" and "test_": "top1"
    title             in words: "top-1"
    unit              "%" of a share of 1, which is shown in percent; else what stands behind the
                      number, such as "dB"
    higher_is_better  False of errors
    shown             False: in metrics.csv alone, since it says nothing that the others do not
    """

    name: str
    title: str
    unit: str = SHARE
    higher_is_better: bool = True
    shown: bool = True

    @property
    def is_share(self) -> bool:
        return self.unit == SHARE

    def text(self, value: float) -> str:
        """As "98.94 %", "31.42 dB" or "0.01234"."""
        if self.is_share:
            return f"{100 * value:.2f} %"
        return f"{value:.4g} {self.unit}".strip()

    def drop(self, before: float, after: float) -> float:
        """By how much it got worse: percentage points of a share, else in its unit."""
        if before == after:
            return 0.0  # also of two that are infinite, such as PSNR of equal images
        lost = before - after if self.higher_is_better else after - before
        return 100 * lost if self.is_share else lost

    def key(self, value: float) -> float:
        """What sorts the best values last; what is no number sorts first."""
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value


# Of runs and reports that do not name their scores.
TOP1, TOP5 = Score("top1", "top-1"), Score("top5", "top-5")
CLASSIFICATION = (TOP1, TOP5)


def shown(scores: Iterable[Score], among: Iterable[str]) -> list[Score]:
    """Those that pages show, of which there are figures."""
    there = set(among)
    return [score for score in scores if score.shown and score.name in there]


def described(figures: Mapping[str, float], scores: Iterable[Score]) -> str:
    """As "loss 0.1234  top-1 98.94 %"; what is not shown is left out."""
    words = [f"{score.title} {score.text(figures[score.name])}" for score in shown(scores, figures)]
    return "  ".join([f"loss {figures['loss']:.4f}", *words])


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps([asdict(score) for score in scores], indent=2) + "\n").encode())


def read_scores(path: Path) -> tuple[Score, ...]:
    """Those of a run; of one without the file, a classification's. Errors: QdeployError."""
    if not path.is_file():
        return CLASSIFICATION
    try:
        found = tuple(Score(**entry) for entry in json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise QdeployError(
            f"{path} does not list the scores of a run ({error}); `qdeploy train --resume` on its run "
            "writes it anew"
        ) from error
    return found or CLASSIFICATION
