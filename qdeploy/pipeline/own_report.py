"""write_report: the proof page of a file for a network, data and loop of one's own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from qdeploy.deploy.export import export, finished
from qdeploy.deploy.open_axes import as_in
from qdeploy.deploy.size_check import checked_sizes
from qdeploy.deploy.target import find_target
from qdeploy.errors import QdeployError
from qdeploy.layers.modes import evaluation_mode
from qdeploy.onnx_file import read
from qdeploy.pipeline.build import Files
from qdeploy.pipeline.measure import Conditions, measured
from qdeploy.pipeline.subject import Subject
from qdeploy.preparation.trace import as_inputs
from qdeploy.proof.validate import exported_again, tensors_of, what_ships
from qdeploy.record import Record
from qdeploy.report.write import write_pages
from qdeploy.tasks import Task, load_task

TARGET = "cpu"  # of whose files the codes are known


def write_report(
    network: nn.Module,
    file: str | Path,
    batches: Iterable[Any],
    folder: str | Path,
    *,
    task: str | Task = "classification",
    classes: int | None = None,
    float_network: nn.Module | None = None,
    title: str = "test data",
    provider: str = "auto",
) -> Record:
    """Proves a file on test data, as `qdeploy export` does: scores, codes, size, kernels and speed.

    Writes report.html, report.md and report.json into `folder`, which is made if it is missing.

    network        what `prepare` or `convert` returned
    file           what `export` wrote for the target "cpu", of that network and no uint8_input
    batches        pairs of inputs and targets, as a DataLoader gives them; a tuple or list of inputs for
                   a forward of several. Read once
    task           by its name, as in a recipe's [task] kind, or a Task: what outputs are judged by
    classes        how many there are; by default the channels of the output
    float_network  the trained network in float, to compare with: it is exported into the folder
    title          what the data are called in the report
    provider       where ONNX Runtime runs the file: "auto", "cpu", "cuda"

    Errors: QdeployError for a file that the network does not export to, for no batches, and for
    outputs that are not of the task.
    """
    file, folder = Path(file), Path(folder)
    network = copy.deepcopy(network).cpu()  # the user's own stays in its mode, where it is
    integers = what_ships(network, "write_report")
    pairs = given_pairs(batches)
    inputs, _ = head = next(pairs, (None, None))
    if inputs is None:
        raise QdeployError("write_report was given no batches; give pairs of inputs and targets")
    judge = load_task(task, {}) if isinstance(task, str) else task
    read(file)  # says what is wrong with a file that is none
    model = onnx.load(file)
    graph = exported_again(model, integers, inputs)
    subject = Subject(
        trained=network,
        integers=integers,
        float_network=copy.deepcopy(float_network),
        task=judge,
        kind=task if isinstance(task, str) else type(task).__name__,
        classes=count_of(integers, inputs, judge, classes),
        batches=itertools.chain([head], pairs),
        title=title,
        example=inputs,
    )
    files = Files(
        model=model,
        int8=finished(graph, False, {}),
        target=TARGET,
        input="float32",
        tensors=tensors_of(file, model, graph),
    )
    sizes = checked_sizes(model, integers, find_target(TARGET), inputs)
    folder.mkdir(parents=True, exist_ok=True)
    float_file = None
    if float_network is not None:
        float_file = folder / "float.onnx"
        export(float_network, float_file, inputs, **as_in(model))
    record = measured(subject, files, file, float_file, sizes, Conditions(provider=provider))
    write_pages(record, folder)
    return record


def given_pairs(batches: Iterable[Any]) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """The batches as (inputs, targets). Errors: QdeployError for what is no pair."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise QdeployError(
                f"write_report takes pairs of inputs and targets, not {type(batch).__name__}: a score "
                "needs both. validate compares a file on inputs alone"
            )
        inputs, targets = batch
        given = as_inputs(tuple(inputs) if isinstance(inputs, list) else inputs)
        yield tuple(x.cpu() for x in given), targets


def count_of(network: nn.Module, inputs: tuple[Tensor, ...], task: Task, given: int | None) -> int:
    """The channels of what the network gives, or the number that is given.

    Errors: QdeployError for outputs that cannot be of the task.
    """
    two = (torch.cat([inputs[0]] * 2)[:2],) if len(inputs) == 1 else inputs
    with evaluation_mode(network), torch.no_grad():
        outputs = network(*two)
    several = isinstance(outputs, Tensor) and outputs.ndim > 1
    count = (outputs.shape[1] if several else 0) if given is None else given
    reason = task.misfit(outputs, count) if len(inputs) == 1 else None
    if reason is not None:
        raise QdeployError(f"this network is not of task {type(task).__name__}: it {reason}")
    return count
