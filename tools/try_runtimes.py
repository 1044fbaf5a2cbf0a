"""Which runtimes run the exported files, and whether they compute the same: results/runtimes.json.

    python tools/try_runtimes.py FOLDER                    # every file in every runtime
    python tools/try_runtimes.py FOLDER --only OpenVINO --keep-files     # this one anew, the others stay

FOLDER gets an environment for each runtime, which is kept (uv makes it, npm for JavaScript), the files, which
are exported anew, and the outputs. Everything is compared with the newest ONNX Runtime.

Its parts: runtimes.py has the runtimes, an entry each; runtime_files.py makes the files; run_files.py and
run_files.cjs run them inside of an environment; runtime_table.py makes the tables of docs/compatibility.md.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from compare_inference import versions
from reproduce import commit
from runtime_files import cases, export_all
from runtimes import NEWEST, RUNTIMES, Runtime, run_all, set_up, version

from qdeploy.benchmark import this_machine
from qdeploy.files import atomic_write
from qdeploy.record import FLOAT_PRODUCTS, INTEGER_PRODUCTS

RESULTS = Path(__file__).parent.parent / "results" / "runtimes.json"
INTEGER = INTEGER_PRODUCTS | {"QLinearConv", "QLinearMatMul"}
IN_FLOAT = FLOAT_PRODUCTS | {"MatMulNBits"}
# What a message comes down to.
MESSAGES = {
    r"Unsupported model IR version: (\d+)": r"IR \1 is too new",
    r"Opset (\d+) is under development": r"opset \1 is too new",
    r"(?:implementation|kernel) for (\w+)\((\d+)\)": r"no kernel for \1 of opset \2",
    r"zero point of per-channel filter must be same": "channels have different zero points",
    r"\[(\w+Transformation)\]": r"\1 throws",
    r"Node \[(\w+)@[\s\S]*Required argument \"(\w+)\" not found": r"\1 without the attribute \2",
    r"Node \[(\w+)@": r"\1 is not read",
    r"Assertion failed\) (.+?) in function": r"assertion \1 fails",
}

Row = dict[str, Any]


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="", help="Runtimes whose name contains this.")
@click.option("--keep-files", is_flag=True, help="Take the files of the last time.")
@click.option("--uv", default="uv", show_default=True, help="The uv that makes environments.")
@click.option(
    "--python", default=sys.executable, help="Their Python; 3.11 has wheels of all versions."
)
@click.option("--processes", default=2, show_default=True, help="Exports at once.")
def main(folder: Path, only: str, keep_files: bool, uv: str, python: str, processes: int) -> None:
    folder = folder.resolve()
    files = folder / "files"
    if not keep_files:
        shutil.rmtree(files, ignore_errors=True)
        made = {"refused": export_all(files, processes), "commit": commit(), **dict(versions())}
        (files / "made.json").write_text(json.dumps(made))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runtimes": {}}
    results["files"] = json.loads((files / "made.json").read_text())
    results["machine"] = asdict(this_machine())
    chosen = [one for one in RUNTIMES if one is NEWEST or only in one.name]
    for runtime in chosen:
        row = tried(runtime, folder, uv, python)
        results["runtimes"][runtime.name] = row
        click.echo(f"{runtime.name} {row['version']}: {summary(row)}")
        with atomic_write(RESULTS) as file:
            file.write(json.dumps(results, indent=1).encode() + b"\n")


def tried(runtime: Runtime, folder: Path, uv: str, python: str) -> Row:
    """The runtime's version and what became of each case, or why it could not be installed."""
    try:
        environment = set_up(runtime, folder / "environments", uv, python)
    except RuntimeError as error:
        return {"version": None, "error": str(error), "cases": {}}
    output = folder / "outputs" / runtime.name
    shutil.rmtree(output, ignore_errors=True)
    answers = run_all(runtime, environment, folder / "files", output, list(cases(folder / "files")))
    found = {answer["case"]: judged(answer, output, folder) for answer in answers}
    return {"version": version(runtime, environment), "cases": found}


def judged(answer: Row, output: Path, folder: Path) -> Row:
    """An answer of a runner beside the outputs of the newest ONNX Runtime."""
    if "error" in answer:
        return {"error": short(answer["error"])}
    case = answer["case"]
    reference = folder / "outputs" / NEWEST.name / case
    found = [read(output / case, number, shape) for number, shape in enumerate(answer["outputs"])]
    expected = [read(reference, number, shape) for number, shape in enumerate(answer["outputs"])]
    kernels = answer.get("kernels") or kernels_of(output / case / "optimized.onnx")
    return {**compared(found, expected), **(kernels or {})}


def read(case: Path, output: int, shape: list[int]) -> np.ndarray[Any, Any]:
    return np.fromfile(case / f"{output}.bin", np.float32).reshape(shape)


def compared(found: list[Any], expected: list[Any]) -> Row:
    """off: the largest difference, in spreads of the output; top1: how often the same class is first."""
    pairs = list(zip(found, expected, strict=True))
    if all(np.array_equal(ours, other) for ours, other in pairs):
        return {"off": 0.0, "top1": 1.0}
    off = max(float(np.abs(ours - other).max() / np.ptp(other)) for ours, other in pairs)
    top1 = min(float((ours.argmax(1) == other.argmax(1)).mean()) for ours, other in pairs)
    return {"off": off, "top1": top1}


def kernels_of(optimized: Path) -> dict[str, int] | None:
    """How many products became integer kernels in the graph that ONNX Runtime saved; None without one."""
    if not optimized.exists():
        return None
    nodes = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    counts = {"integer": INTEGER, "float": IN_FLOAT}
    return {kind: sum(nodes[name] for name in names) for kind, names in counts.items()}


def short(error: str) -> str:
    for pattern, plain in MESSAGES.items():
        if found := re.search(pattern, error):
            return found.expand(plain)
    return " ".join(error.split())[:100]


def summary(row: Row) -> str:
    counts = Counter(
        "failed" if "error" in one else "equal" if one["off"] == 0 else "close"
        for one in row["cases"].values()
    )
    return row.get("error") or ", ".join(f"{n} {kind}" for kind, n in counts.items())


if __name__ == "__main__":
    main()
