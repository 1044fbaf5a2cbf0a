"""The tables of docs/compatibility.md that tools/try_runtimes.py measures: a target each."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results" / "runtimes.json"

Cases = list[dict[str, Any]]
Rows = list[tuple[str, ...]]


def of_target(target: str) -> tuple[Rows, str]:
    """Rows of runtimes by columns of widths, worst over the networks; and what their letters say."""
    found = json.loads(RESULTS.read_text())["runtimes"]
    widths = list(
        dict.fromkeys(case.split("/")[1] for row in found.values() for case in row["cases"])
    )
    errors: list[str] = []
    rows: Rows = [("runtime", *widths, "integer products at W8A8")]
    for name, row in found.items():
        by_width = {
            width: [
                one for case, one in row["cases"].items() if case.startswith(f"{target}/{width}/")
            ]
            for width in widths
        }
        cells = (cell(by_width[width], errors) for width in widths)
        title = f"{name}, {row['version']}" if _is_newest(name) else name
        rows.append((title, *cells, _in_integers(by_width[widths[0]])))
    letters = zip(string.ascii_lowercase, errors, strict=False)
    return rows, ". ".join(f"*{letter}*: {error}" for letter, error in letters)


def _is_newest(name: str) -> bool:
    return not name.startswith("ONNX Runtime 1.")


def cell(cases: Cases, errors: list[str]) -> str:
    """ "equal", the largest difference, or the letter of an error with the files that end in it."""
    parts = []
    ran = [case for case in cases if "error" not in case]
    if ran:
        parts.append(_difference(ran))
    messages = [case["error"] for case in cases if "error" in case]
    for message in dict.fromkeys(messages):
        if message not in errors:
            errors.append(message)
        letter = string.ascii_lowercase[errors.index(message)]
        count = messages.count(message)
        parts.append(
            f"*{letter}*" if count == len(cases) else f"*{letter}* {count} of {len(cases)}"
        )
    return "; ".join(parts)


def _difference(cases: Sequence[dict[str, Any]]) -> str:
    off, top1 = max(case["off"] for case in cases), min(case["top1"] for case in cases)
    if off == 0:
        return "equal"
    size = f"{off:.0e}".replace("e-0", "e-") if off < 1e-3 else f"{off:.2g}"
    return size if top1 == 1 else f"{size}, top-1 {top1:.1%}"


def _in_integers(cases: Cases) -> str:
    counted = [case for case in cases if "integer" in case]
    integer = sum(case["integer"] for case in counted)
    total = integer + sum(case["float"] for case in counted)
    return f"{integer} of {total}" if total else ""
