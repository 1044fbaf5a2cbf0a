"""Tries random networks on qdeploy, and shows the smallest one of each kind of failure.

    python tools/try_networks.py --cases 1000 --seed 1
    python tools/try_networks.py --cases 100 --seed 2 --export     # each file too: ten times as long

tests/random_networks.py draws them, tests/network_properties.py says what must hold of each. A
failure loses every line that it does not need, and is printed as a module to paste into an issue.
Ends with 1 if there is one.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import hypothesis
import torch
from hypothesis.errors import UnsatisfiedAssumption

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from network_properties import check  # type: ignore[import-not-found]
from random_networks import sources  # type: ignore[import-not-found]

SETTINGS = hypothesis.settings(
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[*hypothesis.HealthCheck],
)


@click.command(help=__doc__)
@click.option("--cases", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--export", is_flag=True, help="Runs the ONNX file of each as well.")
def main(cases: int, seed: int, export: bool) -> None:
    torch.set_num_threads(1)
    failures: dict[str, list[str]] = defaultdict(list)

    def try_one(source: str) -> None:
        if kind := failure_of(source, export):
            failures[kind].append(source)
            click.echo(kind, err=True)

    for_each(cases, seed, try_one)
    for kind, found in sorted(failures.items(), key=lambda item: -len(item[1])):
        click.echo(
            f"\n{len(found)} of {cases}: {kind}\n\n{shrunk(min(found, key=len), kind, export)}"
        )
    if failures:
        raise click.exceptions.Exit(1)
    click.echo(f"all that must hold holds of {cases} networks")


def for_each(cases: int, seed: int, use: Callable[[str], None]) -> None:
    """Calls `use` with the text of each network."""
    given = hypothesis.given(sources())(use)
    hypothesis.seed(seed)(hypothesis.settings(SETTINGS, max_examples=cases)(given))()


def failure_of(source: str, export: bool) -> str | None:
    """The error without its numbers, which tells kinds apart; None where all is well."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(source, Path(folder) if export else None)
        except UnsatisfiedAssumption:
            return None
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            return f"{type(error).__name__}: {re.sub(r'[0-9.]+', 'N', first)[:160]}"
    return None


def shrunk(source: str, kind: str, export: bool) -> str:
    """The text without each line, and each output, that the failure does not need."""
    lines = source.splitlines()
    for index in reversed(range(len(lines))):
        for without in shorter(lines[index]):
            fewer = [*lines[:index], *without, *lines[index + 1 :]]
            if failure_of("\n".join(fewer), export) == kind:
                lines = fewer
                break
    return "\n".join(lines)


def shorter(line: str) -> list[list[str]]:
    """What may stand in place of a line: nothing, or one output in place of several."""
    start, returns, outputs = line.partition("return ")
    if returns:
        return [[f"{start}return {output}"] for output in outputs.split(", ")]
    return [[]] if line.strip() and not line.strip().startswith(("class ", "def ", "super")) else []


if __name__ == "__main__":
    main()
