"""Loss and accuracy of a network that is left exactly as it was."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qdeploy import processes
from qdeploy.layers.modes import evaluation_mode

# Makes of a trained network what ships of it, to be tested; the network stays as it is.
AsShipped = Callable[[nn.Module], nn.Module]


def itself(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Metrics:
    """Means over `samples` images: cross entropy in nats, accuracies as fractions of 1."""

    loss: float
    top1: float
    top5: float
    samples: int


def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Metrics:
    """Metrics of `network` in evaluation mode over (images [N,C,H,W], labels [N]).

    With fewer than 5 classes, top-5 is the top of that many. Weights, buffers and modes stay.
    In a run of several processes each gives the batches of its own, and all get the same means.
    """
    sums, seen = torch.zeros(3, dtype=torch.float64), 0
    with evaluation_mode(network), torch.inference_mode():
        for images, labels in batches:
            logits = network(images)
            hits = hits_of(logits, labels)
            loss = cross_entropy(logits, labels, reduction="sum")
            # Read once, at the end: reading waits for the device.
            sums = sums.to(loss.device) + torch.stack([loss, hits[:, 0].sum(), hits.sum()])
            seen += len(labels)
    total, top1, top5, samples = processes.totals([*sums.tolist(), seen])
    return Metrics(total / samples, top1 / samples, top5 / samples, int(samples))


def hits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each of the 5 likeliest classes is the right one: bool [N, 5], the likeliest first.

    logits [N, classes], labels [N]; with fewer than 5 classes there are as many columns.
    """
    best = logits.topk(min(5, logits.shape[1])).indices
    return best == labels[:, None]
