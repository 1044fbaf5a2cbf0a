"""Loss and scores of what would ship; the network itself is left exactly as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qdeploy.data import Batch
from qdeploy.errors import QdeployError
from qdeploy.layers.modes import evaluation_mode, full_float32
from qdeploy.preparation.calibrate import calibrate
from qdeploy.preparation.convert import integers_of
from qdeploy.preparation.prepared import PreparedNetwork, is_searching
from qdeploy.preparation.trace import as_inputs
from qdeploy.tasks import Tally, Task, contiguous, size_of


def evaluate(
    network: nn.Module, batches: Iterable[Batch], task: Task, classes: int
) -> dict[str, float]:
    """The loss and the scores of `network` as it would ship, by name. Weights, buffers and modes stay.

    classes   how many the data set names

    In a run of several processes each gives the batches of its own, and all get the same figures.
    """
    network, tally = as_shipped(network), Tally(task, classes)
    with evaluation_mode(network), full_float32(), torch.inference_mode():
        for inputs, targets in batches:
            outputs = contiguous(network(*as_inputs(inputs)))
            with labels_explained(classes):
                loss = task.loss(outputs, targets)
            tally.add(loss, outputs, targets, size_of(inputs))
    return tally.figures()


@contextmanager
def labels_explained(classes: int) -> Iterator[None]:
    """Raises QdeployError where a loss meets the number of a class that the network has no output for."""
    try:
        yield
    except IndexError as error:  # of torch's cross entropy: "Target 4 is out of bounds."
        found = str(error).rstrip(".")
        if not found.startswith("Target"):
            raise
        raise QdeployError(
            f"{found}: the data set names {classes} classes, so labels are 0 to {classes - 1}. Mend the "
            "label, or let the data set name as many classes as there are"
        ) from error


def as_shipped(network: nn.Module) -> nn.Module:
    """The integers of a prepared network, on its device; any other network is itself.

    Integers round the biases as well, and the codes of low-bit activations tip over by that: what
    is tested in training is what ships, to the last code.
    """
    if not isinstance(network, PreparedNetwork):
        return network
    return integers_of(network).to(next(network.parameters()).device)


@contextmanager
def shipped_buffers(network: nn.Module, batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """Inside the block a network that is searching has the buffers that would ship with it today.

    Its own (BatchNorm statistics, activation ranges) belong to the soft weights. Those of the
    shipped weights are estimated on `batches` and yielded by their state names; afterwards the
    network's own are back. Yields {} and changes nothing if the network is not searching.
    """
    if not is_searching(network):
        yield {}
        return
    trained = {name: buffer.clone() for name, buffer in _buffers(network).items()}
    try:
        calibrate(network, batches)
        saved = network.state_dict().keys()
        yield {name: b.clone() for name, b in _buffers(network).items() if name in saved}
    finally:
        with torch.no_grad():
            for name, buffer in _buffers(network).items():
                buffer.copy_(trained[name])


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    # A shared module has its buffers under several names; state_dict lists them all as well.
    return dict(network.named_buffers(remove_duplicate=False))
