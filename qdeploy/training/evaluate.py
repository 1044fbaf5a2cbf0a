"""Loss and accuracy of what would ship; the network itself is left exactly as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qdeploy import processes
from qdeploy.layers.modes import evaluation_mode, full_float32
from qdeploy.metrics import Metrics
from qdeploy.preparation.calibrate import calibrate
from qdeploy.preparation.convert import integers_of
from qdeploy.preparation.prepared import PreparedNetwork, is_searching


def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Metrics:
    """Metrics of `network` as it would ship over (images [N,C,H,W], labels [N]).

    With fewer than 5 classes, top-5 is the top of that many. Weights, buffers and modes stay.
    In a run of several processes each gives the batches of its own, and all get the same means.
    """
    network = as_shipped(network)
    sums, seen = torch.zeros(3, dtype=torch.float64), 0
    with evaluation_mode(network), full_float32(), torch.inference_mode():
        for images, labels in batches:
            logits = network(images)
            hits = hits_of(logits, labels)
            loss = cross_entropy(logits, labels, reduction="sum")
            # Read once, at the end: reading waits for the device.
            sums = sums.to(loss.device) + torch.stack([loss, hits[:, 0].sum(), hits.sum()])
            seen += len(labels)
    total, top1, top5, samples = processes.totals([*sums.tolist(), seen])
    return Metrics(total / samples, top1 / samples, top5 / samples, int(samples))


def as_shipped(network: nn.Module) -> nn.Module:
    """The integers of a prepared network, on its device; any other network is itself.

    Integers round the biases as well, and the codes of low-bit activations tip over by that: what
    is tested in training is what ships, to the last code.
    """
    if not isinstance(network, PreparedNetwork):
        return network
    return integers_of(network).to(next(network.parameters()).device)


def hits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each of the 5 likeliest classes is the right one: bool [N, 5], the likeliest first.

    logits [N, classes], labels [N]; with fewer than 5 classes there are as many columns.
    """
    best = logits.topk(min(5, logits.shape[1])).indices
    return best == labels[:, None]


@contextmanager
def shipped_buffers(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[dict[str, Tensor]]:
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
