"""The check that prepare ends with: with transparent quantizers it is the user's network.

Both are run in evaluation, on the example and on a batch of other values and another size, and in
training on that batch. A rewrite may round differently and do nothing else: where float32 disagrees,
float64 decides, which tells a fault from a BatchNorm that divides by next to nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.layers.modes import full_float32
from qdeploy.layers.transparent import transparent
from qdeploy.preparation.departure import first_departure
from qdeploy.preparation.same_numbers import SEED, same_numbers
from qdeploy.preparation.trace import described

TOLERANCE = 1e-5  # of the largest value of a tensor
Batch = Sequence[Tensor]
Pair = tuple[nn.Module, nn.Module]  # the float network and the prepared one
Parts = dict[str, Any]  # of an output, by how one gets at them: {"['boxes'][0]": a tensor}


def check_prepared(model: nn.Module, prepared: nn.Module, example: Batch) -> None:
    """Compares what both compute. Works on copies, and leaves every random state as it was.

    example   a tensor for each argument of forward

    Errors: QdeployError that names the first tensor of the float network that the prepared one
    does not compute.
    """
    pair = copy.deepcopy(model), copy.deepcopy(prepared)
    check_on(pair, example, training=False)
    others = (batch for batch in other_batches(example) if check_on(pair, batch, training=False))
    check_on(pair, next(others, example), training=True)


def check_on(pair: Pair, batch: Batch, *, training: bool) -> bool:
    """Whether the float network takes the batch at all. Errors: QdeployError where they differ."""
    try:
        wanted = parts_of(run(pair[0], batch, training))
    except Exception:
        return False  # another size, or training on a single value for each channel
    if problem := problem_of(pair, wanted, batch, training):
        raise QdeployError(explained(pair, batch, training, problem))
    return True


def problem_of(pair: Pair, wanted: Parts, batch: Batch, training: bool) -> str | None:
    """What is wrong with the prepared network's outputs, in words."""
    try:
        found = parts_of(run(pair[1], batch, training))
    except Exception as error:
        return f"it stops with {type(error).__name__}: {error}"
    ours, theirs = (
        {f"output{path} {described([part])}" for path, part in parts.items()}
        for parts in (found, wanted)
    )
    if ours != theirs:
        return f"it gives {listed(ours - theirs)} in place of {listed(theirs - ours)}"
    errors = departures(wanted, found)
    if not errors or is_rounding(pair, batch, training):
        return None
    path, largest = next(iter(errors.items()))
    return f"output{path} differs by {largest:.2g} of its largest value"


def listed(kinds: set[str]) -> str:
    return ", ".join(sorted(kinds)) or "nothing"


def is_rounding(pair: Pair, batch: Batch, training: bool) -> bool:
    """Whether only float32 differs, or the float network itself gives other outputs every time."""
    first, second = (parts_of(run(pair[0], batch, training)) for _ in range(2))
    if departures(first, second):
        return True
    wide = [x.double() if x.is_floating_point() else x for x in batch]
    networks = (copy.deepcopy(network).double() for network in pair)
    try:
        wanted, found = (parts_of(run(network, wide, training)) for network in networks)
    except Exception:
        return False  # it makes float32 tensors itself
    return not departures(wanted, found)


def explained(pair: Pair, batch: Batch, training: bool, problem: str) -> str:
    run_on_batch = partial(run, batch=batch, training=training)
    place = first_departure(*pair, run_on_batch, is_close)
    first = f". The first tensor that departs is made in {place}" if place else ""
    return (
        f"in {'training' if training else 'evaluation'} the prepared network does not compute what "
        f"{type(pair[0]).__name__} does: {problem}{first}. Name the module that makes it in "
        "`leaves`, which keeps it whole and in float, and report the network, since this is a fault "
        "of qdeploy; check=False prepares it all the same"
    )


def run(network: nn.Module, batch: Batch, training: bool) -> Any:
    """The outputs of a network that rounds nothing and draws the numbers that others draw."""
    numbers = same_numbers(x.device for x in batch)
    with torch.no_grad(), full_float32(), transparent(network), numbers:
        return network.train(training)(*(x.clone() for x in batch))


def other_batches(example: Batch) -> Iterator[Batch]:
    """Other values than the example's: three of them, or four beside three; else as many."""
    for rows in (lambda n: torch.arange(4 if n == 3 else 3) % n, torch.arange):
        generator = torch.Generator().manual_seed(SEED)
        yield [other_values(x[rows(len(x))] if x.ndim else x, generator) for x in example]


def other_values(x: Tensor, generator: torch.Generator) -> Tensor:
    """x with noise as large as its own deviation; numbers that stand for something change places."""
    if not x.is_floating_point() or not x.isfinite().all():
        return x.flip(0) if x.ndim else x
    size = x.std(correction=0)
    noise = torch.randn(x.shape, generator=generator).to(x)
    return x + noise * torch.where(size > 0, size, 1.0)


def parts_of(output: Any) -> Parts:
    """The tensors and numbers of an output, whatever holds them: a tuple or a list, any mapping."""
    return {pytree.keystr(path): part for path, part in pytree.tree_leaves_with_path(output)}


def departures(wanted: Parts, found: Parts) -> dict[str, float]:
    """The relative error of each tensor where it is too large."""
    tensors = {path: part for path, part in wanted.items() if isinstance(part, Tensor)}
    errors = {path: relative_error(part, found[path]) for path, part in tensors.items()}
    return {path: error for path, error in errors.items() if error > TOLERANCE}


def is_close(wanted: Tensor, found: Tensor) -> bool:
    return relative_error(wanted, found) <= TOLERANCE


def relative_error(wanted: Tensor, found: Tensor) -> float:
    """The largest difference over the largest size; infinite where one alone is not finite."""
    if not wanted.numel() or torch.equal(wanted, found):
        return 0.0
    wanted, found = wanted.double(), found.double()
    same = (wanted == found) | (wanted.isnan() & found.isnan())
    error = torch.where(same, 0.0, (wanted - found).abs()).nan_to_num(torch.inf, torch.inf).max()
    size = wanted.abs().nan_to_num(0.0, posinf=0.0).max()
    return (error / size if size > 0 else error).item()
