"""Calibration batches as users have them, as the tensors that forward takes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.errors import QdeployError
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import as_inputs, described

Batch = Tensor | np.ndarray[Any, Any] | Sequence[Any] | Mapping[str, Any]


def inputs_of_batches(batches: Iterable[Batch], network: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of each batch. Errors: QdeployError if there is none, and as inputs_of has them."""
    if isinstance(batches, Tensor | np.ndarray | Mapping) or not isinstance(batches, Iterable):
        given = "one tensor" if isinstance(batches, Tensor) else type(batches).__name__
        raise QdeployError(f"calibrate takes batches, not {given}: give it a list, [x]")
    remaining = iter(batches)
    try:
        first = next(remaining)
    except StopIteration:
        raise QdeployError("calibrate was given no batches; give it at least one") from None
    return (inputs_of(batch, network) for batch in itertools.chain([first], remaining))


def inputs_of(batch: Batch, network: nn.Module) -> tuple[Tensor, ...]:
    """As many tensors as forward takes.

    batch   a tensor or NumPy array; a sequence that starts with as many; or a mapping that has them
            under the names of forward's arguments

    Errors: QdeployError for a mapping without them, and for integers in place of floats.
    """
    kinds = arguments_of(network)
    if isinstance(batch, Mapping):
        batch = _by_name(batch, list(kinds))
    alone = isinstance(batch, Tensor | np.ndarray) or not isinstance(batch, Sequence)
    inputs = as_inputs(batch if alone else batch[: len(kinds)])  # type: ignore[arg-type]
    named = zip(kinds.items(), inputs, strict=False)
    return tuple(x if kind is None else _as_kind(x, kind, name) for (name, kind), x in named)


def arguments_of(network: nn.Module) -> Mapping[str, torch.dtype | None]:
    """The arguments that forward was prepared with, and their types.

    Of a module that holds a prepared network only the first is known, and its type is not.
    """
    if isinstance(network, PreparedNetwork):
        return network.plan.evaluation.arguments
    return {next(iter(inspect.signature(network.forward).parameters), "input"): None}


def _by_name(batch: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    missing = [name for name in names if name not in batch]
    if missing:
        raise QdeployError(
            f"a calibration batch has {', '.join(map(str, batch))}, but not {', '.join(missing)}, which "
            'forward takes. Give calibrate the tensors alone: [batch["image"] for batch in loader]'
        )
    return [batch[name] for name in names]


def _as_kind(x: Tensor, kind: torch.dtype, name: str) -> Tensor:
    """Floats as the float type that the network was prepared with."""
    if kind.is_floating_point and not x.is_floating_point():
        raise QdeployError(
            f"a calibration batch has {described([x])} for {name}, which prepare saw as {kind}: give the "
            "images as they are trained with, scaled and normalised"
        )
    return x.to(kind) if kind.is_floating_point else x
