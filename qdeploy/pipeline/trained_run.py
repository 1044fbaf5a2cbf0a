"""A trained run, loaded from its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from qdeploy.data import Data, Normalisation
from qdeploy.errors import QdeployError
from qdeploy.metrics import EpochRecord
from qdeploy.pipeline.assemble import data_of, float_network_of, task_of, trainable
from qdeploy.pipeline.images_of_run import read_survey
from qdeploy.recipe import ExportSection, Recipe, validated
from qdeploy.run import RunFolder, recipe_file
from qdeploy.scores import Score
from qdeploy.tasks import Task
from qdeploy.training.checkpoint import load_checkpoint_of
from qdeploy.training.device import pick_device
from qdeploy.training.weights import load_float_weights, load_network_state

Which = Literal["last", "best"]


@dataclass(frozen=True)
class TrainedRun:
    """A run folder, loaded: the trained network, its float network, their data and task, its epochs."""

    run: RunFolder
    recipe: Recipe
    data: Data
    task: Task
    network: nn.Module
    float_network: nn.Module
    float_is_trained: bool
    history: Sequence[EpochRecord]
    checkpoint: Path

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """What reports show of the task, the headline first."""
        return self.task.shown_scores(len(self.data.classes))

    def export_section(self, **changes: object) -> ExportSection:
        """The recipe's [export] with these keys; None leaves what stands there.

        Errors: QdeployError for a key that is not one of [export], and for a value that is not allowed.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        return validated(ExportSection, self.recipe.export.model_dump() | given, "export")

    def exported_as(self, section: ExportSection) -> TrainedRun:
        """With what a section says of the file; its gates are no part of that."""
        form = {"target", "input", "input_names", "output_names", "readable", "dynamic"}
        export = self.recipe.export.model_copy(update=section.model_dump(include=form))
        return replace(self, recipe=self.recipe.model_copy(update={"export": export}))

    @property
    def pixels(self) -> Callable[[Tensor], Tensor] | None:
        """What makes the uint8 images that the file takes of normalised ones; None if it takes those."""
        if self.recipe.export.input == "float32":
            return None
        if self.data.mean is None or self.data.std is None:
            raise QdeployError(
                f'export.input = "uint8" needs to know how images are normalised, and {self.data.title} does '
                "not say: let its function return mean and std as well"
            )
        return Normalisation(self.data.mean, self.data.std, "cpu").pixels


def load_run(run: RunFolder, checkpoint: Which, data_root: Path | None, device: str) -> TrainedRun:
    """Errors: QdeployError if the folder holds no trained run."""
    file = run.last if checkpoint == "last" else run.best
    recipe = Recipe.load(recipe_file(run))
    if not file.is_file():
        raise QdeployError(
            f"{run.path} is not trained yet: it has no {file.name}; "
            f"`qdeploy train --resume -o {run.path}` goes on with it"
        )
    survey = read_survey(run)
    data = data_of(recipe, run, pick_device(device), root=data_root, survey=survey)
    task = task_of(recipe, run)
    float_network = float_network_of(recipe, data, task, run)
    network = trainable(recipe, float_network, data)
    found = load_checkpoint_of(recipe, file)
    load_network_state(network, found)
    is_trained = load_baseline(recipe, run, float_network)
    return TrainedRun(
        run, recipe, data, task, network, float_network, is_trained, found.history, file
    )


def load_baseline(recipe: Recipe, run: RunFolder, float_network: nn.Module) -> bool:
    """Gives the float network its trained weights; False if the run has none.

    A network that was itself trained in float is its own baseline.
    """
    if recipe.quantize.method == "float":
        return True
    if run.float_run.last.is_file():
        load_float_weights(float_network, run.float_run.last)
    elif recipe.model.weights is not None:
        load_float_weights(float_network, Path(recipe.model.weights))
    else:
        return False
    return True
