"""Statistics for the weights that ship: BatchNorm and activation ranges, without training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.prepared import PreparedNetwork


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Re-estimates BatchNorm statistics and activation ranges as plain means over `batches`.

    The weights are those of evaluation mode, the ones that ship: a hard 1-bit weight is tens of
    times larger than the soft weight it was trained as, and statistics of the one are wrong for
    the other. Changes buffers, and steps that are yet to be learned. Each batch is [N, C, H, W],
    or a tuple that starts with what forward takes.

    Errors: QdeployError if `batches` is empty.
    """
    remaining = iter(batches)
    try:
        first = next(remaining)
    except StopIteration:
        raise QdeployError("calibrate was given no batches; give it at least one") from None
    with calibration_mode(prepared):
        for batch in itertools.chain([first], remaining):
            prepared(*inputs_of(batch, prepared))


def inputs_of(batch: Tensor | tuple[Tensor, ...], prepared: nn.Module) -> tuple[Tensor, ...]:
    """As many tensors as forward takes; labels may follow them."""
    arguments = prepared.arguments if isinstance(prepared, PreparedNetwork) else 1
    return (batch,) if isinstance(batch, Tensor) else tuple(batch[:arguments])


@contextmanager
def calibration_mode(prepared: nn.Module) -> Iterator[None]:
    """Evaluation mode, but norms and observers start anew and average what they see."""
    modes = {module: module.training for module in prepared.modules()}
    norms = [m for m in prepared.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    quantizers = [m for m in prepared.modules() if isinstance(m, ActivationQuantizer)]
    momenta = [norm.momentum for norm in norms]
    prepared.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain mean
        norm.train()
    for quantizer in quantizers:
        quantizer.reset()
        quantizer.calibrating = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for quantizer in quantizers:
            quantizer.calibrating = False
        for module, training in modes.items():
            module.training = training
