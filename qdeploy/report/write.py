"""Writes the report's files, each complete or not at all."""

from collections.abc import Sequence
from pathlib import Path

from qdeploy.files import atomic_write
from qdeploy.report.charts import Row
from qdeploy.report.html import report_page, training_page
from qdeploy.report.markdown import markdown
from qdeploy.report.record import Record


def write_report(record: Record, folder: Path) -> Path:
    """Writes report.json, report.md and report.html into `folder`; returns the page's path.

    Raises:
        QdeployError: the folder cannot be written to.
    """
    page = folder / "report.html"
    _replace(folder / "report.json", record.to_json())
    _replace(folder / "report.md", markdown(record))
    _replace(page, report_page(record))
    return page


def write_training_page(rows: Sequence[Row], path: Path, title: str) -> None:
    """Writes the curves of `rows`, the lines of metrics.csv as {column: value}, as HTML.

    Raises:
        QdeployError: the path cannot be written to.
    """
    _replace(path, training_page(rows, title))


def _replace(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
