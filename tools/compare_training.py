"""Time and memory of a training step: float, our methods, torch.ao and brevitas, in turns.

    python tools/compare_training.py results/training.json

Runs on the GPU where there is one. brevitas takes part if it can be imported (pip install
brevitas); what did not take part is in the results.
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import trainers
from compare_inference import absent, versions
from contenders import Contender, measure

from qdeploy.benchmark import this_machine

OURS = (
    "simqat 8 8", "simqat 4 4", "slb 1 8", "slb 2 8", "slb 4 8", "dorefa 8 8", "dorefa 4 4",
    "dorefa 1 8", "xnor 1 8", "xnor 1 1", "ternary 2 8", "ternary 2 4", "pact 8 8", "pact 4 4",
    "lsq 8 8", "lsq 4 4", "int8_training 8 8",
)  # fmt: skip
BASELINE = "float channels_last"


@dataclass(frozen=True)
class Work:
    """A network of the zoo, its batch [N, C, H, W] and which of our methods train it."""

    network: str
    shape: tuple[int, int, int, int]
    methods: tuple[str, ...]
    others: bool


WORKS = {
    # As in the measurement that the targets come from: two-conv blocks, batch 128.
    "resnet20s": Work("resnet20s", (128, 3, 32, 32), OURS, others=True),
    "resnet18": Work("resnet18", (32, 3, 32, 32), ("simqat 8 8", "slb 1 8", "slb 4 8"), False),
}


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--network", "networks", type=click.Choice(list(WORKS)), multiple=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--turns", default=6, show_default=True, help="Of each contender, 0.3 s or more.")
@click.option("--only", help="Contenders whose name contains this, and the float ones.")
def main(
    results: Path, networks: tuple[str, ...], threads: int, turns: int, only: str | None
) -> None:
    content: dict[str, Any] = {
        "machine": asdict(this_machine()),
        "versions": dict(versions()),
        "skipped": absent(["brevitas"]),
        "threads": threads,
        "steps": [],
    }
    for name in networks or WORKS:
        rows = compared(WORKS[name], threads, turns, only or "")
        content["steps"] += rows
        for row in rows:
            click.echo(f"{name}, {row['contender']}: {told(row)}")
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(content, indent=1) + "\n")


def compared(work: Work, threads: int, turns: int, only: str) -> list[dict[str, Any]]:
    """A row for each contender: a step's time and memory over those of float channels_last."""
    chosen = [c for c in contenders(work) if only in c.name or c.name == BASELINE]
    times = measure(chosen, work.shape, threads, turns)
    rows: list[dict[str, Any]] = []
    for contender in chosen:
        found = times[contender.name]
        row = {"network": work.network, "batch": work.shape[0], "contender": contender.name}
        if isinstance(found, str):
            rows.append(row | {"failure": found})
            continue
        peak = peak_mb(contender, work.shape, threads)
        rows.append(row | {"step_ms": statistics.median(found), "peak_mb": peak})
    base = next(row for row in rows if row["contender"] == BASELINE)
    for row in rows:
        if "failure" not in row:
            row["time"] = row["step_ms"] / base["step_ms"]
            row["memory"] = row["peak_mb"] / base["peak_mb"]
    return rows


def told(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"failed: {row['failure']}"
    return f"{row['step_ms']:.1f} ms, {row['time']:.2f}x, memory {row['memory']:.2f}x"


def contenders(work: Work) -> list[Contender]:
    """Float first; brevitas is left out where it is not installed."""
    found = [Contender(BASELINE, trainers.float_channels_last, work.network)]
    if work.others:
        found.append(Contender("float NCHW", trainers.float_nchw, work.network))
        found.append(Contender("torch.ao W8A8", trainers.torch_ao, work.network))
    if work.others and not absent(["brevitas"]):
        found.append(Contender("brevitas W8A8", trainers.brevitas, work.network))
    for given in work.methods:
        method, weight_bits, act_bits = given.split()
        name = f"{method} W{weight_bits}A{act_bits}"
        found.append(Contender(name, trainers.ours, f"{work.network} {given}"))
    return found


def peak_mb(contender: Contender, shape: tuple[int, ...], threads: int) -> float:
    """In a process of its own: the peak of a process never falls."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        work = pool.submit(trainers.peak_mb, contender.load, contender.model, shape, threads)
        return work.result()


if __name__ == "__main__":
    main()
