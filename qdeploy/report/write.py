"""Writes the report's files, each complete or not at all."""

import os
from collections.abc import Sequence
from pathlib import Path

from qdeploy.errors import QdeployError
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
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise QdeployError(
            f"cannot write {path}: {error.strerror}. Free the place or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
