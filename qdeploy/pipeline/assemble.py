"""From a recipe to its parts: data, float network, prepared network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.data import WHOLE, Batch, Data, Share, Survey, open_data
from qdeploy.data.own_data import OwnBatches
from qdeploy.errors import QdeployError
from qdeploy.layers.modes import evaluation_mode
from qdeploy.layers.transparent import transparent
from qdeploy.network_loading import load_network
from qdeploy.preparation.bias_correction import float_weights
from qdeploy.preparation.prepare import prepare
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import as_inputs
from qdeploy.recipe import Recipe
from qdeploy.references import told
from qdeploy.run import RunFolder
from qdeploy.tasks import Tally, Task, load_task


def data_of(
    recipe: Recipe,
    copies: RunFolder | None,
    device: torch.device | str,
    *,
    root: Path | None = None,
    download: bool = False,
    share: Share = WHOLE,
    survey: Survey | None = None,
) -> Data:
    """The recipe's data; copies: the run that holds a copy of the user's files, see Reference."""
    copy = copies.data if copies else None
    seed = recipe.train.seed
    return open_data(recipe.data, root, download, device, seed, share, survey, copy)


def task_of(recipe: Recipe, copies: RunFolder | None = None) -> Task:
    """The recipe's task. Errors: QdeployError as load_task has them."""
    smoothing = recipe.train.label_smoothing
    smoothed = {"label_smoothing": smoothing} if smoothing else {}
    copy = copies.task if copies else None
    return load_task(recipe.task.kind, recipe.task.options | smoothed, copy)


def float_network_of(
    recipe: Recipe, data: Data, task: Task, copies: RunFolder | None = None
) -> nn.Module:
    """The recipe's network, freshly initialised from the recipe's seed.

    Errors: QdeployError if it does not take the data's inputs, or if what it gives is not of the task.
    """
    torch.manual_seed(recipe.train.seed)
    copy = copies.network if copies else None
    check_classes(data, task, recipe.task.kind)
    network = load_network(recipe.model.network, recipe.model.options, copy)
    check_fits(network, data, task, recipe.model.network)
    for part in (data.train, data.val, data.test):
        if isinstance(part, OwnBatches):
            check_targets(network, part.first(2), data, task, recipe.task.kind)
    return network


def with_regime(data: Data, recipe: Recipe, task: Task, *networks: nn.Module) -> Data:
    """The data under the recipe's regime.

    networks   the float one, and the prepared one, which decides by sizes as it did when it was traced

    Errors: QdeployError if one of them does not take the images of a phase, or the processes of the
    run cannot share out its batches.
    """
    train = data.train.under(recipe.data)
    for size in {section.image_size for section in recipe.data.phases()}:
        if size is not None:
            blank = torch.zeros(2, data.input_shape[0], size, size)
            for network in networks:
                check_fits(network, replace(data, example=(blank,)), task, recipe.model.network)
    return replace(data, train=train)


def check_classes(data: Data, task: Task, kind: str) -> None:
    """Errors: QdeployError where the data set names fewer classes than the task needs."""
    if len(data.classes) < task.least_classes:
        raise QdeployError(
            f"task {kind!r} needs {task.least_classes} classes at least, and {data.title} names "
            f'{len(data.classes)}; a function of your own returns "classes", their names in the order of '
            "their numbers"
        )


def check_fits(network: nn.Module, data: Data, task: Task, name: str) -> None:
    """Runs two inputs through the network."""
    shapes = " and ".join(str(list(x.shape[1:])) for x in data.example)
    try:
        with evaluation_mode(network), transparent(network), torch.no_grad():
            outputs = network(*data.example)
    except Exception as error:
        raise QdeployError(
            f"network {name!r} cannot take {data.noun} of shape {shapes} of {data.title}: "
            f"{type(error).__name__}: {error}; "
            "set model.options to this image size and number of channels"
        ) from error
    misfit = task.misfit(outputs, len(data.classes))
    if misfit is not None:
        raise QdeployError(f"network {name!r} on {data.title} {misfit}")


def check_targets(network: nn.Module, batch: Batch, data: Data, task: Task, kind: str) -> None:
    """Asks the task for the loss and the scores of two items. Errors: QdeployError if it has none."""
    inputs, targets = batch
    with evaluation_mode(network), torch.no_grad():
        try:
            outputs = network(*as_inputs(inputs))
        except Exception as error:
            raise QdeployError(
                f"the network cannot take inputs {shapes_of(inputs)} of {data.title}, whose tests begin with "
                f"{shapes_of(data.example)}: {told(error)}"
            ) from error
        try:
            loss, training_loss = (of(outputs, targets) for of in (task.loss, task.training_loss))
            tally = Tally(task, len(data.classes))
            tally.add(loss, outputs, targets, 2)
            tally.scoring.numbers()
        except QdeployError:
            raise
        except Exception as error:
            raise QdeployError(
                f"task {kind!r} fails on the outputs and targets of {data.title}: {told(error)}; outputs are "
                f"{shapes_of(outputs)}, targets {shapes_of(targets)}"
            ) from error
    for value in (loss, training_loss):
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise QdeployError(
                f"the loss of task {kind!r} is {shapes_of(value)}, and must be one number, the mean over "
                "the batch"
            )


def shapes_of(values: Any) -> str:
    """As "[2, 3, 8, 8] of float32"."""
    kinds = pytree.tree_map_only(
        Tensor, lambda x: f"{list(x.shape)} of {str(x.dtype).removeprefix('torch.')}", values
    )
    return " and ".join(map(str, pytree.tree_leaves(kinds)))


def trainable(recipe: Recipe, float_network: nn.Module, data: Data) -> nn.Module:
    """What the recipe trains: the network prepared for its method, or the float network itself."""
    quantize = recipe.quantize
    if quantize.method == "float":
        return float_network
    check_options(quantize.options)
    torch.manual_seed(recipe.train.seed)
    network = prepare(
        float_network,
        data.example,
        quantize.method,
        quantize.weight_bits,
        quantize.act_bits,
        quantize.layers,
        first_last_float=quantize.first_last_float,
        equalize=quantize.equalize,
        reduce_range=quantize.reduce_range,
        leaves=quantize.leaves,
        check=quantize.check,
        **quantize.options,
    )
    if recipe.train.epochs == 0 and recipe.calibrate.correct_bias:
        float_weights(network)  # finds what has none before hours in float
    return network


def check_options(options: Mapping[str, Any]) -> None:
    """Errors: QdeployError for a key of [quantize] among the method's own options."""
    misplaced = sorted(set(options) & set(inspect.signature(prepare).parameters))
    if misplaced:
        raise QdeployError(
            f"quantize.options has {', '.join(misplaced)}, which no method takes; keys such as "
            "weight_bits, act_bits and layers stand in [quantize] itself"
        )


def settings_text(network: nn.Module) -> str:
    """Every setting of the quantization, a line for each layer."""
    return network.extra_repr() if isinstance(network, PreparedNetwork) else "float"
