"""One record of an export, and its faces: terminal, JSON, Markdown, HTML. No torch in here."""

from qdeploy.report.table import benchmark_table, kernel_table, record_table
from qdeploy.report.write import write_report, write_training_page

__all__ = [
    "benchmark_table",
    "kernel_table",
    "record_table",
    "write_report",
    "write_training_page",
]
