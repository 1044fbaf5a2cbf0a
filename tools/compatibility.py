"""Which versions qdeploy was tested with, and what installing it weighs: results/compatibility.json.

    python tools/compatibility.py tests oldest          # run by the Python of the environment to be tested
    python tools/compatibility.py weigh "qdeploy[cpu]" ENVIRONMENT/lib/python3.11/site-packages

Each command adds the row that it names first. tools/tables.py makes the tables of
docs/compatibility.md of the file.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from filelock import FileLock
from junit import read_report
from reproduce import commit

from qdeploy.files import atomic_write

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "compatibility.json"

# Whose versions a row names: what qdeploy is built on, in the order of the table.
PACKAGES = (
    "torch", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime-gpu", "onnxruntime",
    "pydantic", "lightning-fabric", "pillow", "scikit-learn", "bokeh", "click", "rich",
)  # fmt: skip

Figures = dict[str, Any]


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("name")
@click.argument("pytest", nargs=-1, type=click.UNPROCESSED)
def tests(name: str, pytest: tuple[str, ...]) -> None:
    """Runs the whole suite, or what PYTEST's arguments (after --) choose of it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *pytest]
        subprocess.run(command, cwd=ROOT, check=False)
        found = read_report(report)
    found["failures"] = sorted(found["failures"])  # their names; what they say has paths in it
    chosen = {"commit": commit(), "chosen": " ".join(pytest)}
    keep("tests", name, {**environment(), **chosen, **found})


def environment() -> Figures:
    """The Python, system and packages that run this."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), "system": system, "packages": found}


@main.command()
@click.argument("name")
@click.argument("packages", type=click.Path(exists=True, path_type=Path))
def weigh(name: str, packages: Path) -> None:
    """What lies in PACKAGES, the site-packages of an environment."""
    weighed = {path.name: size_of(path) for path in packages.iterdir()}
    bare = (
        "pip",
        "setuptools",
        "_distutils_hack",
        "pkg_resources",
    )  # an empty environment has these
    sizes = {one: size for one, size in weighed.items() if not one.startswith(bare)}
    heaviest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:8])
    count = sum(one.endswith(".dist-info") for one in sizes)
    row = {"bytes": sum(sizes.values()), "packages": count, "heaviest": heaviest}
    keep("installs", name, row)


def size_of(path: Path) -> int:
    """Bytes, but for compiled Python, which some installers leave to the first import."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file() and one.suffix != ".pyc")


def keep(table: str, name: str, row: Figures) -> None:
    """Adds a row to the file, in place of one of that name."""
    with FileLock(RESULTS.with_suffix(".lock")):
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.setdefault(table, {})[name] = row
        with atomic_write(RESULTS) as out:
            out.write((json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
