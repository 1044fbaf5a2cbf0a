"""What a file is compared with: its network in every other form, their task and the data that judge them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qdeploy.data import Batch, Normalisation
from qdeploy.layers.modes import evaluation_mode
from qdeploy.pipeline.build import without_folder
from qdeploy.pipeline.trained_run import TrainedRun
from qdeploy.scores import Score
from qdeploy.tasks import Task


@dataclass(frozen=True)
class Subject:
    """A network in all its forms but the file, with the task and the data that judge them.

    trained         as it was trained: prepared, or float
    integers        the same as it ships
    float_network   None where it is not trained, so that it has nothing to say
    task, classes   what outputs are judged by, and how many classes the data name; kind: of task
    batches         (inputs, targets) to judge on, read once; title: what they are
    example         inputs of the network, a batch of them
    pixels          makes the uint8 images that the file takes of normalised ones; None if it takes those
    """

    trained: nn.Module
    integers: fx.GraphModule
    float_network: nn.Module | None
    task: Task
    kind: str
    classes: int
    batches: Iterable[tuple[Any, Any]]
    title: str
    example: tuple[Tensor, ...]
    pixels: Callable[[Tensor], Tensor] | None = None

    @property
    def scores(self) -> tuple[Score, ...]:
        """What reports show of the task, the headline first."""
        return self.task.shown_scores(self.classes)

    @property
    def structure(self) -> pytree.TreeSpec:
        """Of what the network gives: a tensor, or several in a tuple, list or dict."""
        with evaluation_mode(self.integers), torch.no_grad():
            return pytree.tree_structure(self.integers(*self.example))


def subject_of(trained: TrainedRun, integers: fx.GraphModule, samples: int | None) -> Subject:
    """What a run's file is compared with, on the first `samples` of its test set, or all."""
    tested = trained.data.test if samples is None else trained.data.test.shortened(samples)
    return Subject(
        trained=trained.network,
        integers=integers,
        float_network=trained.float_network if trained.float_is_trained else None,
        task=trained.task,
        kind=without_folder(trained.recipe.task.kind),
        classes=len(trained.data.classes),
        batches=whole_pixels(tested.epoch(0), trained),
        title=trained.data.title,
        example=trained.data.example,
        pixels=trained.pixels,
    )


def whole_pixels(batches: Iterable[Batch], trained: TrainedRun) -> Iterator[Batch]:
    """The batches; where the file takes uint8, rounded to whole pixels if resizing left none."""
    if trained.pixels is None or trained.data.mean is None or trained.data.std is None:
        yield from batches
        return
    normalise = Normalisation(trained.data.mean, trained.data.std, "cpu")
    for images, labels in batches:
        yield normalise(normalise.pixels(images.cpu())), labels
