"""The page of curves that follows a run while it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qdeploy import processes
from qdeploy.metrics import read_metrics
from qdeploy.recipe import Recipe
from qdeploy.report.write import write_training_page
from qdeploy.run import RunFolder
from qdeploy.scores import read_scores

AT_MOST_EVERY = 2.0  # seconds: a page takes a tenth of one, as long as an epoch of the digits


@contextmanager
def live_page(run: RunFolder, recipe: Recipe) -> Iterator[Callable[[], None]]:
    """Yields what rewrites the run's page from its metrics.csv; it skips calls in quick succession.

    Such a page says that the run goes on. However the block ends, the last one says no longer. Of
    several processes the first one writes.
    """
    if processes.rank() > 0:
        yield lambda: None
        return
    written = -math.inf

    def write(going: bool) -> None:
        rows = read_metrics(run.metrics)
        scores = read_scores(run.scores)
        write_training_page(rows, run.curves, recipe.name, recipe.train.epochs, going, scores)

    def rewrite() -> None:
        nonlocal written
        if time.monotonic() - written >= AT_MOST_EVERY:
            write(going=True)
            written = time.monotonic()

    try:
        yield rewrite
    finally:
        write(going=False)
