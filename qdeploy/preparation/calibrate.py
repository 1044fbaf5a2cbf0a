"""Statistics for the weights that ship: BatchNorm and activation ranges, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer, calibration
from qdeploy.layers.modes import evaluation_mode
from qdeploy.preparation.batches import Batch, inputs_of_batches
from qdeploy.preparation.bias_correction import float_moments, restore_moments
from qdeploy.preparation.left_out import left_out_of
from qdeploy.preparation.prepared import PreparedNetwork, is_searching
from qdeploy.preparation.ranges import MEAN, check_ranges, measured
from qdeploy.preparation.trace import described
from qdeploy.preparation.whole import is_flattened


@torch.no_grad()
def calibrate(
    prepared: nn.Module,
    batches: Iterable[Batch],
    ranges: str = MEAN,
    *,
    percentile: float = 99.99,
    batch_norm: bool = False,
    correct_bias: bool = False,
    alone: bool = False,
) -> None:
    """Measures activation ranges, and BatchNorm statistics if asked, for the weights that ship.

    Those are the weights of evaluation mode: a hard 1-bit weight is tens of times larger than the
    soft weight it was trained as, and statistics of the one are wrong for the other. Changes
    buffers, steps that are yet to be learned and, to correct biases, biases. Each of `batches`
    is [N, C, H, W], a tuple that starts with what forward takes, or a mapping that has it by name.

    ranges        "mean" of the batches' extremes, as in training; of all values seen "minmax",
                  "percentile", "mse" or "entropy" (see ranges.py). A range that a method sets or
                  learns is its own affair.
    percentile    in per cent; leaves out 100 - percentile of the values on either side
    batch_norm    re-estimates BatchNorm statistics as plain means over the batches. While a
                  search (SLB) goes on they belong to other weights and are re-estimated in any case
    correct_bias  makes each layer's mean output, and its deviation if it has a norm, what it was
                  in float (see bias_correction.py); all batches are kept in memory
    alone         in a run of several processes measures in this one and asks no other

    In such a run all processes call it, each with batches of its own, as many as it has: they
    measure by themselves, and what comes out are the statistics of all batches, in all of them.

    Errors: QdeployError if `batches` is empty or one batch, one of them is not what forward takes,
    a range is not known, a value is not finite, biases are to be corrected after a method
    without float weights, or another process does not call it or fails.
    """
    if not any(isinstance(module, PreparedNetwork) for module in prepared.modules()):
        raise QdeployError(
            f"calibrate takes what qdeploy.prepare returned; {type(prepared).__name__} holds none of it"
        )
    if isinstance(prepared, PreparedNetwork) and is_flattened(prepared):
        raise QdeployError(
            "FSDP has flattened the weights of this network: give calibrate the module that FSDP returned, "
            "or call it inside of FSDP.summon_full_params"
        )
    check_ranges(ranges, percentile)
    batch_norm = batch_norm or is_searching(prepared)
    with processes.apart() if alone else nullcontext():
        processes.meet("calibrate")
        with processes.failing_together("calibrate"), processes.apart():
            inputs = on_device_of(prepared, inputs_of_batches(batches, prepared))
            kept = list(inputs) if correct_bias else []
            wanted = float_moments(prepared, kept) if correct_bias else {}
        observe(prepared, kept or inputs, ranges, percentile, batch_norm)
        if correct_bias:
            with evaluation_mode(prepared):
                restore_moments(prepared, kept, wanted)


def on_device_of(
    network: nn.Module, batches: Iterable[tuple[Tensor, ...]]
) -> Iterator[tuple[Tensor, ...]]:
    device = next(network.parameters()).device
    return (tuple(x.to(device) for x in inputs) for inputs in batches)


def observe(
    prepared: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    ranges: str,
    percentile: float,
    batch_norm: bool,
) -> None:
    norms = measured_norms(prepared) if batch_norm else []
    with calibration_mode(prepared, norms), measured(prepared, ranges, percentile):
        with processes.failing_together("calibrate"), processes.apart():
            for inputs in batches:
                run(prepared, inputs)
        share(prepared, norms)
    for name, count in left_out_of(prepared).items():
        quantizer = prepared.get_submodule(name)
        assert isinstance(quantizer, ActivationQuantizer)
        if quantizer.observing:
            raise QdeployError(
                f"calibration met values without bounds at {name} in {count} batches: look for nan and inf "
                "in the images, in masks that are inputs, and in the network's weights"
            )


def share(prepared: nn.Module, norms: Iterable[_BatchNorm]) -> None:
    """Joins what the processes of a run measured, each by itself."""
    if processes.count() == 1:
        return
    for module in prepared.modules():
        if isinstance(module, ActivationQuantizer):
            module.share()
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        processes.pool([norm.running_mean, norm.running_var], norm.num_batches_tracked)


def run(prepared: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Errors: QdeployError for a batch that the network does not take."""
    try:
        prepared(*inputs)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise QdeployError(
            f"the network does not take a calibration batch of {described(inputs)}: {error}. Give "
            "batches like the example input of prepare, as float32 tensors"
        ) from error


def measured_norms(prepared: nn.Module) -> list[_BatchNorm]:
    norms = (module for module in prepared.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.track_running_stats]


@contextmanager
def calibration_mode(prepared: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Evaluation mode, but observers and `norms` start anew and average what they see."""
    momenta = [norm.momentum for norm in norms]
    synchronised = [norm for norm in norms if type(norm) is nn.SyncBatchNorm]
    with evaluation_mode(prepared), calibration(prepared):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the plain mean
            norm.train()
        for norm in synchronised:  # would ask the other processes at each batch
            norm.forward = partial(_BatchNorm.forward, norm)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for norm in synchronised:
                del norm.forward
