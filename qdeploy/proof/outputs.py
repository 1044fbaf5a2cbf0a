"""The file, in its runtimes, beside the networks it came from, on the whole test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.layers.modes import full_float32
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.record import Agreement
from qdeploy.tasks import Scoring, Task, size_of

Array = npt.NDArray[Any]
Inputs = tuple[Tensor, ...]
# One form of the network: from inputs to its outputs, one after the other, on the CPU.
Form = Callable[[Inputs], Sequence[Tensor]]
Pixels = Callable[[Tensor], Tensor]  # makes uint8 images of normalised ones


@dataclass(frozen=True)
class Judged:
    """What the forms of a network were found to give.

    scores      {form: {score: value}}
    agreements  {pair of forms: how they agree}
    """

    scores: dict[str, dict[str, float]]
    agreements: dict[tuple[str, str], Agreement]
    samples: int


def judge(
    forms: Mapping[str, Form],
    batches: Iterable[tuple[Any, Any]],
    task: Task,
    classes: int,
    structure: pytree.TreeSpec,
    pairs: Sequence[tuple[str, str]] = (),
) -> Judged:
    """Every form on the same batches, which are read once.

    structure   of the network's outputs, which a runtime gives one after the other
    pairs       of forms that are compared with each other
    """
    scorings = {name: Scoring(task, classes) for name in forms}
    compared = {pair: Comparison(task, structure) for pair in pairs}
    samples = 0
    for inputs, targets in batches:
        targets = pytree.tree_map_only(Tensor, Tensor.cpu, targets)
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        outputs = {name: list(form(given)) for name, form in forms.items()}
        for name, found in outputs.items():
            scorings[name].update(pytree.tree_unflatten(found, structure), targets)
        for (one, other), comparison in compared.items():
            comparison.add(outputs[one], outputs[other])
        samples += size_of(inputs)
    return Judged(
        {name: scoring.values() for name, scoring in scorings.items()},
        {pair: comparison.agreement(samples) for pair, comparison in compared.items()},
        samples,
    )


@dataclass
class Comparison:
    """Two forms, batch by batch; the first is the reference."""

    task: Task
    structure: pytree.TreeSpec
    same: int = 0
    decided: int = 0
    values: int = 0
    largest: float = 0.0
    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def add(self, reference: Sequence[Tensor], other: Sequence[Tensor]) -> None:
        decisions = [
            self.task.decision(pytree.tree_unflatten(list(outputs), self.structure))
            for outputs in (reference, other)
        ]
        if decisions[0] is not None and decisions[1] is not None:
            self.same += int((decisions[0] == decisions[1]).sum())
            self.decided += decisions[0].numel()
        for one, two in zip(reference, other, strict=True):
            one = one.double()
            difference = (one - two.double()).abs()
            self.values += difference.numel()
            self.largest = float(np.maximum(self.largest, float(difference.max())))  # keeps a nan
            squares = one.square().sum(), difference.square().sum()
            self.sums += [float(difference.sum()), *map(float, squares)]

    def agreement(self, samples: int) -> Agreement:
        difference, signal, noise = self.sums
        ratio = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
        return Agreement(
            samples=samples,
            share=self.same / self.decided if self.decided else None,
            decided=self.decided,
            decides=self.task.decides,
            largest=self.largest,
            mean=difference / max(1, self.values),
            sqnr=ratio,
        )


def of_network(network: nn.Module, device: torch.device | str) -> Form:
    """A torch network in evaluation mode."""
    network = network.eval().to(device)

    @torch.inference_mode()
    def run(inputs: Inputs) -> list[Tensor]:
        with full_float32():
            return leaves(network(*(x.to(device) for x in inputs)))

    return run


def of_compared(network: ComparedNetwork, pixels: Pixels | None = None) -> Form:
    """The integers in PyTorch, compared with their file on the way; pixels: see `of_runtime`."""

    def run(inputs: Inputs) -> list[Tensor]:
        fed = None if pixels is None else [pixels(x.cpu()).numpy() for x in inputs]
        return leaves(network(list(inputs), fed)[0])

    return run


def of_runtime(run: Callable[..., list[Array]], pixels: Pixels | None = None) -> Form:
    """An ONNX file in a runtime, from the arrays of its inputs to those of its outputs.

    pixels: makes uint8 images of normalised ones, for a file that takes those
    """

    def form(inputs: Inputs) -> list[Tensor]:
        fed = [x.cpu() if pixels is None else pixels(x.cpu()) for x in inputs]
        return [torch.from_numpy(np.asarray(array)) for array in run(*(x.numpy() for x in fed))]

    return form


def leaves(outputs: Any) -> list[Tensor]:
    return [x.detach().cpu().float().contiguous() for x in pytree.tree_leaves(outputs)]
