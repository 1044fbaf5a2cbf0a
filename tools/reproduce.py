"""Trains, exports and validates recipes, and keeps their figures in one JSON file.

    python tools/reproduce.py results/mnist.json --data-root DATA lenet5-mnist-float lenet5-mnist-simqat

A run that is there already is gone on with, so a long list survives an interruption.
tools/tables.py makes the README's tables of the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from qdeploy.pipeline.export import export_run
from qdeploy.pipeline.train import train
from qdeploy.recipe import Recipe
from qdeploy.report.record import Record


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("recipes", nargs=-1, required=True)
@click.option("--set", "overrides", multiple=True, help="Change a setting of all recipes.")
@click.option("--label", default="", help="Added to the name of each run.")
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--device", default="auto")
def main(
    results: Path,
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    label: str,
    data_root: Path | None,
    runs: Path,
    device: str,
) -> None:
    """Adds one row a recipe to RESULTS."""
    for name in recipes:
        folder = runs / f"{name}{label}"
        recipe = Recipe.load(name, overrides)
        train(recipe, folder, data_root=data_root, device=device, resume=folder.exists())
        record = export_run(folder, data_root=data_root, device=device)
        keep(results, row(record, recipe, label, overrides))


def row(record: Record, recipe: Recipe, label: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The figures of one recipe."""
    assert record.accuracy.trained is not None
    return {
        "recipe": f"{recipe.name}{label}",
        "overrides": overrides,
        "epochs": recipe.train.epochs,
        "float_epochs": recipe.train.float_epochs,
        "data": asdict(record.dataset),
        "accuracy": asdict(record.accuracy),
        "best_epoch_top1": max(line["test_top1"] or 0 for line in record.training),
        "agreement": None if record.agreement is None else asdict(record.agreement),
        "size": asdict(record.size),
        "seconds": sum(line["seconds"] or 0 for line in record.training),
        "trained_on": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else record.machine.cpu,
        "validated_on": record.latency[0].provider,
        "qdeploy": record.version,
    }


def keep(results: Path, new: dict[str, Any]) -> None:
    """Adds a row, in the place of an older one of the same recipe."""
    rows = json.loads(results.read_text()) if results.exists() else []
    rows = [old for old in rows if old["recipe"] != new["recipe"]] + [new]
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
