"""A training step under torch.compile against the same step without it, in turns.

    python tools/compare_compiled.py results/compiled.json

Runs on the GPU where there is one. Compiling, in the first step, is not in the figures.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import trainers
from compare_inference import versions
from contenders import Call, Contender, measure

from qdeploy.benchmark import this_machine

Shape = tuple[int, int, int, int]

WORKS: dict[str, Shape] = {"lenet5": (128, 1, 28, 28), "resnet20s": (128, 3, 32, 32)}
WAYS = ("float", "simqat 8 8", "lsq 4 4", "slb 1 8")


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--network", "networks", type=click.Choice(list(WORKS)), multiple=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--turns", default=6, show_default=True, help="Of each way, 0.3 s or more.")
def main(results: Path, networks: tuple[str, ...], threads: int, turns: int) -> None:
    content: dict[str, Any] = {
        "machine": asdict(this_machine()),
        "versions": dict(versions()),
        "threads": threads,
        "steps": [],
    }
    for network in networks or WORKS:
        for way in WAYS:
            row = compared(network, way, threads, turns)
            content["steps"].append(row)
            click.echo(f"{network}, {way}: {json.dumps(row)}")
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(content, indent=1) + "\n")


def compared(network: str, way: str, threads: int, turns: int) -> dict[str, Any]:
    """Median steps in ms, and how many times as fast the compiled one is."""
    shape = WORKS[network]
    given = f"{network} {way}"
    contenders = [Contender("plain", plain, given), Contender("compiled", compiled, given)]
    times = measure(contenders, shape, threads, turns)
    row: dict[str, Any] = {"network": network, "batch": shape[0], "way": way}
    for name, found in times.items():
        if isinstance(found, str):
            return row | {"failure": f"{name}: {found}"}
        row[f"{name}_ms"] = statistics.median(found)
    return row | {"speed": row["plain_ms"] / row["compiled_ms"]}


def plain(given: str, shape: tuple[int, ...], threads: int) -> Call:
    return _step(given, shape, threads, compiles=False)


def compiled(given: str, shape: tuple[int, ...], threads: int) -> Call:
    return _step(given, shape, threads, compiles=True)


def _step(given: str, shape: tuple[int, ...], threads: int, compiles: bool) -> Call:
    """given: "NETWORK METHOD WEIGHT_BITS ACT_BITS" or "NETWORK float"."""
    network, _, quantization = given.partition(" ")
    images = trainers.images_of(shape)
    model = trainers.prepared_for(network, quantization, images, threads)
    return trainers.step_of(model, images, compiled=compiles)


if __name__ == "__main__":
    main()
