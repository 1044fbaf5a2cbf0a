"""train: from a recipe to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from torch import nn
from typing_extensions import Unpack

from qdeploy import processes
from qdeploy.data import Data, Share
from qdeploy.data.open import data_reference
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.network_loading import network_reference
from qdeploy.pipeline.assemble import (
    data_of,
    float_network_of,
    settings_text,
    task_of,
    trainable,
    with_regime,
)
from qdeploy.pipeline.images_of_run import check_same_images, read_survey, write_survey
from qdeploy.pipeline.live_page import live_page
from qdeploy.pipeline.regimes import (
    check_order,
    regime_lines,
    regime_phases,
    start_of,
    with_regimes_of,
)
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import QuantizeSection, Recipe
from qdeploy.run import RunFolder, create_run, default_path
from qdeploy.tasks import task_reference
from qdeploy.training.console import Console
from qdeploy.training.launch import Devices, first_process_first, launched, open_fabric
from qdeploy.training.loop import fit
from qdeploy.training.only_calibrate import only_calibrate
from qdeploy.training.session import Session
from qdeploy.training.weights import load_float_weights


def train(
    recipe: Recipe,
    path: Path | None = None,
    *,
    data_root: Path | None = None,
    download: bool = False,
    resume: bool = False,
    force: bool = False,
    stream: TextIO | None = None,
    **devices: Unpack[Devices],
) -> RunFolder:
    """Trains a recipe and returns its run folder, `path` or a new one below ./runs.

    data_root  takes the place of the recipe's data.root
    resume     goes on with the run in `path`, which must be one of this recipe
    force      takes the place of the run in `path`
    stream     where the console speaks, in place of standard output
    devices    device, devices and num_nodes of `open_fabric`; the recipe's batch size is that of all
               devices together

    Everything that can be wrong with the recipe, its network, its weights and its data is found
    before the folder is made. Errors: QdeployError.
    """
    fabric = open_fabric(**devices, precision=recipe.train.precision)
    with launched(fabric):
        run = RunFolder(fabric.broadcast(path or default_path(recipe)))
        with first_process_first(fabric):
            if resume and run.recipe.is_file():
                recipe = recipe_of_run(run, recipe)
            recipe = with_root(recipe, data_root)
            share = Share(processes.rank(), processes.count())
            copies = run if resume else None
            # What process 0 found when it began, also for those that come after it.
            began = read_survey(run) if resume or processes.rank() > 0 else None
            data = data_of(
                recipe, copies, fabric.device, download=download, share=share, survey=began
            )
            check_same_images(began, data, run)
            task = task_of(recipe, copies)
            float_network = float_network_of(recipe, data, task, copies)
            goes_on = resume and run.last.is_file()
            if recipe.model.weights is not None and (recipe.train.distill or not goes_on):
                load_float_weights(float_network, Path(recipe.model.weights))
            network = trainable(recipe, float_network, data)
            settled = with_regimes_of(float_network, recipe)
            data = with_regime(data, settled, task, float_network, network)
            check_order(settled, data.train.steps_before)
            if processes.rank() == 0:
                create_run(run.path, recipe, resume=resume, force=force)
                write_survey(run, data)
                keep_sources(recipe, run)
        console, classes = Console(run.log, stream), len(data.classes)
        session = Session(settled, run, fabric, console, task, classes, resume)
        train_in(session, float_network, network, data.in_training())
    return run


def keep_sources(recipe: Recipe, run: RunFolder) -> None:
    """Copies of the files that define the network and, where they are the user's, task and data."""
    sources = {run.network: network_reference(recipe.model.network)}
    if (task := task_reference(recipe.task.kind)) is not None:
        sources[run.task] = task
    if ":" in recipe.data.dataset:
        sources[run.data] = data_reference(recipe.data.dataset)
    for copy, reference in sources.items():
        if not copy.is_file():
            with atomic_write(copy) as file:
                file.write(reference.source())


def train_in(session: Session, float_network: nn.Module, network: nn.Module, data: Data) -> None:
    """Trains first in float, if the recipe wants it, then `network`, what the recipe quantizes."""
    recipe, console, path = session.recipe, session.console, session.run.path
    try:
        if recipe.train.float_epochs:
            train_in_float(session, float_network, data)
            network = trainable(recipe, float_network, data)  # anew, from what float learned
        console.log(
            f"{recipe.name}: {data.title}, {data.train.samples} {data.noun} to train on, in {path}"
        )
        for note in data.notes:
            console.log(note)
        console.log(settings_text(network))
        for line in regime_lines(recipe):
            console.log(line)
        for warning in warnings(network, recipe, data.train.steps_before):
            console.log(f"warning: {warning}")
        teacher = float_network if recipe.train.distill else None
        fit_and_plot(session, network, data, teacher)
    except KeyboardInterrupt:
        console.log(f"`qdeploy train -o {path} --resume` goes on from there")
        raise


def recipe_of_run(run: RunFolder, recipe: Recipe) -> Recipe:
    """The recipe that a run began with.

    Errors: QdeployError naming the keys in which `recipe` is another.
    """
    began = Recipe.load(run.recipe)
    differences = list(differing(began.model_dump(), recipe.model_dump()))
    if differences:
        raise QdeployError(
            f"{run.path} holds a run of another recipe: {'; '.join(differences)}. Go on with its own by "
            f"`qdeploy train --resume -o {run.path}`, start anew with --force, or choose another "
            "folder with -o"
        )
    return began


def differing(began: Any, given: Any, key: str = "") -> Iterator[str]:
    """A phrase for each key that two recipes have otherwise; data.root may be another."""
    if isinstance(began, dict) and isinstance(given, dict):
        for name in {**began, **given}:
            yield from differing(began.get(name), given.get(name), f"{key}.{name}".lstrip("."))
    elif began != given and key != "data.root":
        yield f"{key} is {began!r} in the run, given is {given!r}"


def with_root(recipe: Recipe, root: Path | None) -> Recipe:
    """The recipe with its data in `root`, so that the run knows where they are."""
    if root is None:
        return recipe
    data = recipe.data.model_copy(update={"root": str(root.resolve())})
    return recipe.model_copy(update={"data": data})


def warnings(
    network: nn.Module, recipe: Recipe, steps_before: Callable[[int], int]
) -> Iterator[str]:
    """What the run is too short for. steps_before: training steps before an epoch, from 0."""
    epochs = recipe.train.epochs
    if epochs == 0:
        return  # calibrated only
    steps = steps_before(epochs)
    for name, phase in regime_phases(recipe):
        if not phase.begun(epochs - 1, steps - 1):
            yield (
                f"the phase of [{name}] from {start_of(phase)} never begins: the run has {epochs} "
                f"epochs of {steps} steps in all"
            )
    if not isinstance(network, PreparedNetwork):
        return
    if network.quant_delay >= steps:
        yield (
            f"quant_delay is {network.quant_delay} steps and the whole run has {steps}, so "
            "activations train in float to the end; lower quantize.options.quant_delay"
        )
    was_searching = network.searching
    network.set_progress(0, epochs)
    if was_searching and not network.searching:
        yield (
            f"the search for weights ends before the first of {epochs} epochs, so none of them "
            "changes its level; raise train.epochs"
        )


def fit_and_plot(
    session: Session, network: nn.Module, data: Data, teacher: nn.Module | None = None
) -> None:
    if session.recipe.train.epochs == 0:
        only_calibrate(session, network, data)
        return
    with live_page(session.run, session.recipe) as rewrite:
        fit(session, network, data, teacher=teacher, follow=rewrite)


def train_in_float(session: Session, network: nn.Module, data: Data) -> None:
    """Gives the float network weights of some epochs of its own.

    They are a run in the folder `float` of this one: the baseline that the report compares with.
    """
    baseline, folder, resume = float_recipe(session.recipe), session.run.float_run, session.resume
    if processes.rank() == 0:
        create_run(folder.path, baseline, resume=resume, force=not resume)
        write_survey(folder, data)
    console = Console(folder.log, session.console.stream)
    console.log(f"{baseline.name}: {baseline.train.epochs} epochs in float")
    fit_and_plot(replace(session, recipe=baseline, run=folder, console=console), network, data)
    network.cpu()


def float_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the float baseline."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}, float",
            "quantize": QuantizeSection(method="float"),
            "train": recipe.train.model_copy(
                update={"epochs": recipe.train.float_epochs, "float_epochs": 0, "distill": 0.0}
            ),
        }
    )
