"""What training knows of a network whose integers are still being searched for.

A quantized network may have `set_progress(epoch, epochs)`, called before each epoch,
`progress`: where its schedules stand, {name: value}, and `searching`: True while the weights
that are trained are not yet those that ship. A float network has none of them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qdeploy.preparation.calibrate import calibrate


def set_progress(network: nn.Module, epoch: int, epochs: int) -> None:
    """Tell a quantized network that `epoch` of `epochs` (from 0) is about to be trained."""
    follow = getattr(network, "set_progress", None)
    if follow is not None:
        follow(epoch, epochs)


def progress_of(network: nn.Module) -> dict[str, float]:
    """Where the schedules of a quantized network stand, such as SLB's temperature."""
    return dict(getattr(network, "progress", {}))


def is_searching(network: nn.Module) -> bool:
    """True while `network` trains weights that are not yet those that ship."""
    return bool(getattr(network, "searching", False))


@contextmanager
def shipped(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """The network as it would ship today: yields the calibrated buffers by their state names.

    The buffers (BatchNorm statistics, activation ranges) of a searching network belong to the
    soft weights. Inside the block they are those of the shipped weights, estimated on
    `batches`; afterwards they are exactly what they were. Yields {} and changes nothing if
    the network is not searching.
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
