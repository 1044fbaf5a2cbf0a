"""Writes the report's files, each complete or not at all."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from qdeploy.files import atomic_write
from qdeploy.record import Record
from qdeploy.report.charts import Row
from qdeploy.report.comparison import Run
from qdeploy.report.html import comparison_page, report_page, training_page
from qdeploy.report.markdown import markdown
from qdeploy.report.progress import Progress
from qdeploy.scores import CLASSIFICATION, Score


def write_pages(record: Record, folder: Path) -> Path:
    """Writes report.json, report.md and report.html into `folder`; returns the page's path.

    Errors: QdeployError if the folder cannot be written to.
    """
    page = folder / "report.html"
    _replace(folder / "report.json", record.to_json())
    _replace(folder / "report.md", markdown(record))
    _replace(page, report_page(record))
    return page


def write_training_page(
    rows: Sequence[Row],
    path: Path,
    title: str,
    epochs: int,
    going: bool,
    scores: Sequence[Score] = CLASSIFICATION,
) -> None:
    """Writes the curves of `rows`, the lines of metrics.csv as {column: value}, as HTML.

    `epochs` are planned; while the run is `going` the page reloads itself. Errors: QdeployError if
    the path cannot be written to.
    """
    progress = Progress(rows, epochs, going, datetime.now().astimezone(), scores)
    _replace(path, training_page(progress, title))


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """Writes the page that compares `runs`. Errors: QdeployError if the path cannot be written to."""
    _replace(path, comparison_page(runs))


def _replace(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
