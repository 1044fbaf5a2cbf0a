"""Top-1 of trained runs by the batches that BatchNorm statistics and ranges are estimated from.

    python tools/compare_statistics.py results/statistics.json runs/cifar10-short/slb-w1a8-*-s0

0 batches are the running averages of training, which ship unless a search for weights still goes on; then
they are those of soft weights, and train.calibration_batches (50) replace them after each epoch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from qdeploy.benchmark import this_machine
from qdeploy.files import atomic_write
from qdeploy.pipeline.trained_run import load_run
from qdeploy.preparation.calibrate import calibrate
from qdeploy.run import RunFolder
from qdeploy.training.checkpoint import load_checkpoint
from qdeploy.training.device import pick_device
from qdeploy.training.evaluate import evaluate
from qdeploy.training.weights import load_network_state

BATCHES = (0, 1, 5, 20, 50, 200)


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True)
def main(results: Path, runs: tuple[Path, ...], data_root: Path | None, device: str) -> None:
    rows: list[dict[str, Any]] = []
    content = {"machine": asdict(this_machine()), "batches": list(BATCHES), "runs": rows}
    for path in runs:
        rows.append({"run": path.name, **measured(RunFolder(path), data_root, device)})
        click.echo(rows[-1])
        with atomic_write(results) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def measured(run: RunFolder, data_root: Path | None, device: str) -> dict[str, Any]:
    """Top-1 for each of BATCHES, all from the same trained weights."""
    trained = load_run(run, "last", data_root, device)
    network = trained.network.to(pick_device(device))
    top1 = []
    for count in BATCHES:
        load_network_state(network, load_checkpoint(run.last), shipped=False)
        if count:
            calibrate(network, islice(trained.data.train.epoch(0), count), batch_norm=True)
        tests, classes = trained.data.test.epoch(0), len(trained.data.classes)
        top1.append(evaluate(network, tests, trained.task, classes)["top1"])
    return {
        "data": trained.data.title,
        "batch_size": trained.recipe.data.batch_size,
        "epochs": trained.recipe.train.epochs,
        "top1": top1,
    }


if __name__ == "__main__":
    main()
