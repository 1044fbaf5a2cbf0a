"""Reads what pytest leaves with --junitxml."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def read_report(report: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, the seconds they took, and {test: its last words}."""
    (suite,) = ElementTree.parse(report).getroot()
    failed = {
        f"{case.get('classname')}::{case.get('name')}": (part.text or "")[-2000:]
        for case in suite
        for part in case
        if part.tag in ("failure", "error")
    }
    skipped = int(suite.attrib["skipped"])
    return {
        "passed": int(suite.attrib["tests"]) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "seconds": float(suite.attrib["time"]),
        "failures": failed,
    }
