"""What 7-bit weights in place of 8-bit ones cost: reduce_range on and off, calibrated and trained.

    python tools/compare_reduce_range.py results/reduce_range.json --data-root DATA

Takes the float networks of tools/compare_calibration.py, and trains them if their runs are not there.
tools/tables.py makes a table of the file.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from compare_calibration import calibration_images, of_trained_networks, trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.data import Data
from qdeploy.deploy.inspect import inspect
from qdeploy.tasks import Classification
from qdeploy.training.evaluate import evaluate

LEARNING_RATE = 0.01


@click.command()
@of_trained_networks
@click.option("--epochs", default=1, show_default=True, help="Of training; 0: only calibrated.")
def main(
    results: Path,
    data_root: Path | None,
    runs: Path,
    batches: int,
    epochs: int,
    title: str | None,
    chosen: tuple[str, ...],
) -> None:
    """Writes a row for each network and way to RESULTS."""
    rows = json.loads(results.read_text()) if results.exists() else []
    for name in chosen:
        network, data = trained(name, data_root, runs)
        images = list(itertools.islice(calibration_images(data), batches))
        for way in ("calibrated", f"{epochs} epoch") if epochs else ("calibrated",):
            new = row(name, title or data.title, way, network, data, images, epochs)
            rows = [old for old in rows if (old["network"], old["way"]) != (name, way)] + [new]
            click.echo(json.dumps(new))
            results.write_text(json.dumps(rows, indent=1) + "\n")


def top1_of(network: nn.Module, data: Data) -> float:
    return evaluate(network, data.test.epoch(0), Classification(), len(data.classes))["top1"]


def row(
    name: str,
    title: str,
    way: str,
    network: nn.Module,
    data: Data,
    images: list[Tensor],
    epochs: int,
) -> dict[str, Any]:
    """Top-1 of the float network and of both, and the layers of both files that may saturate."""
    found: dict[str, Any] = {"network": name, "data": title, "way": way}
    found["float"] = top1_of(network.eval(), data)
    for bits, reduce in ((8, False), (7, True)):
        torch.manual_seed(0)
        prepared = qdeploy.prepare(network, images[0], "simqat", reduce_range=reduce)
        if way == "calibrated":
            qdeploy.calibrate(prepared, images, "mse", correct_bias=True)
        else:
            train_on(prepared, data, epochs)
        found[f"{bits} bits"] = top1_of(qdeploy.convert(prepared), data)
        with tempfile.TemporaryDirectory() as folder:
            file = qdeploy.export(prepared.eval(), Path(folder) / "m.onnx", images[0])
            saturation = inspect(file).saturation("")
        found[f"{bits} bits saturate"] = len(saturation.layers)
        found["layers"] = saturation.quantized
    return found


def train_on(network: nn.Module, data: Data, epochs: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True)
    steps = epochs * sum(1 for _ in data.train.epoch(0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for epoch in range(epochs):
        for images, labels in data.train.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
