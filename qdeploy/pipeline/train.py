"""train: from a recipe to a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from torch import nn

from qdeploy.data import Data
from qdeploy.files import atomic_write
from qdeploy.networks import network_source
from qdeploy.pipeline.assemble import (
    data_of,
    fingerprint,
    float_network_of,
    settings_text,
    trainable,
)
from qdeploy.recipe import QuantizeSection, Recipe
from qdeploy.report.write import write_training_page
from qdeploy.training.console import Console
from qdeploy.training.loop import fit
from qdeploy.training.run import RunFolder, create_run, default_path
from qdeploy.training.weights import load_float_weights


def train(
    recipe: Recipe,
    path: Path | None = None,
    *,
    data_root: Path | None = None,
    download: bool = False,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    stream: TextIO | None = None,
) -> RunFolder:
    """Trains a recipe and returns its run folder, `path` or a new one below ./runs.

    Everything that can be wrong with the recipe, its network and its data is found before the
    folder is made. device: auto, cpu or cuda. Errors: QdeployError.
    """
    data = data_of(recipe, data_root, download, device)
    float_network = float_network_of(recipe, data)
    trainable(
        recipe, float_network, data
    )  # finds errors of the method before hours of float epochs
    run = create_run(path or default_path(recipe), recipe, resume=resume, force=force)
    with atomic_write(run.network) as file:
        file.write(network_source(recipe.model.network).encode())
    console = Console(run.log, stream)
    float_start(recipe, float_network, data, run, device, resume, stream)
    network = trainable(recipe, float_network, data)
    console.log(
        f"{recipe.name}: {data.title}, {data.train.samples} images to train on, in {run.path}"
    )
    console.log(settings_text(network))
    fit_and_plot(network, data, recipe, run, console, device, resume)
    return run


def fit_and_plot(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    device: str,
    resume: bool,
) -> None:
    result = fit(
        network,
        data,
        recipe.train,
        run,
        console,
        fingerprint=fingerprint(recipe),
        device=device,
        resume=resume,
    )
    write_training_page([asdict(row) for row in result.history], run.curves, recipe.name)


def float_start(
    recipe: Recipe,
    network: nn.Module,
    data: Data,
    run: RunFolder,
    device: str,
    resume: bool,
    stream: TextIO | None,
) -> None:
    """Gives the float network its trained weights: from a file, or from epochs of its own.

    The float epochs are a run of their own, in the folder `float` of this one: the baseline
    that the report compares with.
    """
    if recipe.model.weights is not None:
        load_float_weights(network, Path(recipe.model.weights))
    if recipe.train.float_epochs:
        baseline = float_recipe(recipe)
        folder = create_run(run.float_run.path, baseline, resume=resume, force=not resume)
        console = Console(folder.log, stream)
        console.log(f"{baseline.name}: {baseline.train.epochs} epochs in float")
        fit_and_plot(network, data, baseline, folder, console, device, resume)


def float_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the float baseline."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}, float",
            "quantize": QuantizeSection(method="float"),
            "train": recipe.train.model_copy(
                update={"epochs": recipe.train.float_epochs, "float_epochs": 0}
            ),
        }
    )
