"""The check that prepare ends with: with transparent quantizers it is the user's network.

Both are run in evaluation, on the example and on a batch of other values and another size, and in
training on that batch. A rewrite may round differently and do nothing else: where float32 disagrees,
float64 decides, which tells a fault from a BatchNorm that divides by next to nothing.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.layers.modes import full_float32
from qdeploy.layers.transparent import transparent
from qdeploy.preparation.departure import first_departure
from qdeploy.preparation.trace import described

TOLERANCE = 1e-5  # of the largest value of a tensor
SEED = 0
Batch = Sequence[Tensor]
Parts = dict[str, Any]  # of an output: see `by_path`
Pair = tuple[nn.Module, nn.Module]  # the float network and the prepared one


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
        wanted = by_path(run(pair[0], batch, training))
    except Exception:
        return False  # another size, or training on a single value for each channel
    problem = difference(wanted, pair[1], batch, training)
    if problem and not is_rounding(pair, batch, training):
        raise QdeployError(explained(pair, batch, training, problem))
    return True


def difference(wanted: Parts, network: nn.Module, batch: Batch, training: bool) -> str | None:
    """What is wrong with the outputs of a network, in words."""
    try:
        found = by_path(run(network, batch, training))
    except Exception as error:
        return f"it stops with {type(error).__name__}: {error}"
    if wanted.keys() != found.keys():
        return f"it gives the outputs {listed(found)}, not {listed(wanted)}"
    problems = (unequal(path, value, found[path]) for path, value in wanted.items())
    return next(filter(None, problems), None)


def is_rounding(pair: Pair, batch: Batch, training: bool) -> bool:
    """Whether the difference is one of float32, or of a network that gives other outputs every time."""
    model, prepared = pair
    wanted = by_path(run(model, batch, training))
    if difference(wanted, model, batch, training):
        return True
    wide = [x.double() if x.is_floating_point() else x for x in batch]
    try:
        wanted = by_path(run(copy.deepcopy(model).double(), wide, training))
    except Exception:
        return False  # it makes float32 tensors itself
    return difference(wanted, copy.deepcopy(prepared).double(), wide, training) is None


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
    """Outputs of a copy of the batch, without rounding and with random numbers of one seed."""
    with torch.no_grad(), full_float32(), transparent(network), seeded(batch):
        return network.train(training)(*(x.clone() for x in batch))


@contextmanager
def seeded(batch: Batch) -> Iterator[None]:
    """Every random number inside the block comes of SEED; afterwards their states are back."""
    generators = [torch.default_generator]
    generators += [torch.cuda.default_generators[x.device.index] for x in batch if x.is_cuda]
    states = [generator.get_state() for generator in generators]
    plain, numpys = random.getstate(), np.random.get_state()
    for seed in (*(generator.manual_seed for generator in generators), random.seed, np.random.seed):
        seed(SEED)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(plain)
        np.random.set_state(numpys)


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


def by_path(output: Any) -> Parts:
    """The parts of an output by how one gets at them, whatever holds them: {"['boxes'][0]": tensor}."""
    return {pytree.keystr(path): part for path, part in pytree.tree_leaves_with_path(output)}


def listed(parts: Parts) -> str:
    return ", ".join(path or "one" for path in parts)


def unequal(path: str, wanted: Any, found: Any) -> str | None:
    """How a part of the output differs, in words."""
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        same = type(wanted) is type(found)
        return (
            None
            if same
            else f"output{path} is a {type(found).__name__}, not {type(wanted).__name__}"
        )
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return f"output{path} is {described([found])}, not {described([wanted])}"
    if is_close(wanted, found):
        return None
    return f"output{path} differs by {relative_error(wanted, found):.2g} of its largest value"


def is_close(wanted: Tensor, found: Tensor) -> bool:
    return relative_error(wanted, found) <= TOLERANCE


def relative_error(wanted: Tensor, found: Tensor) -> float:
    """The largest difference over the largest size; infinite where one alone is not finite."""
    if not wanted.numel() or torch.equal(wanted, found):
        return 0.0
    wanted, found = wanted.double(), found.double()
    same = (wanted == found) | (wanted.isnan() & found.isnan())
    error = torch.where(same, 0.0, (wanted - found).abs()).nan_to_num(torch.inf).max()
    size = wanted.abs().nan_to_num(0.0, posinf=0.0).max()
    return (error / size if size > 0 else error).item()
