"""Where one network first departs from another: what their operators give, compared one by one."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qdeploy.preparation.passed_by import is_passed_by

OURS = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent


@dataclass(eq=False)
class Value:
    """A tensor as an operator gave it: what later writes into it makes another value."""

    tensor: Tensor
    place: str
    sources: list[Value]


class Recording(TorchFunctionMode):
    """Keeps what the operators of a network give inside the block, and what they read."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.latest: dict[int, Value] = {}
        self.alive: list[Tensor] = []  # so that no id stands for two tensors
        self.running: list[str] = []
        for name, module in network.named_modules():
            if is_passed_by(module):
                continue
            module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name))
            module.register_forward_hook(self.leave)

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [self.latest.get(id(part)) for part in pytree.tree_leaves((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                sources = [value for value in read if value]
                value = Value(tensor.detach().clone(), self.place(sys._getframe(1)), sources)
                self.values.append(value)
                self.latest[id(tensor)] = value
                self.alive.append(tensor)
        return result

    def place(self, frame: FrameType | None) -> str:
        """The module that runs, and the line of the user's: 'layer1.0 (net.py, line 3: y = x + 1)'."""
        module = next(filter(None, reversed(self.running)), "forward")
        while frame and not (file := Path(frame.f_code.co_filename)).is_relative_to(OURS):
            if not file.is_relative_to(TORCH):
                line = linecache.getline(str(file), frame.f_lineno).strip()
                return f"{module} ({file}, line {frame.f_lineno}: {line})"
            frame = frame.f_back
        return module


def first_departure(
    network: nn.Module,
    other: nn.Module,
    run: Callable[[nn.Module], Any],
    same: Callable[[Tensor, Tensor], bool],
) -> str | None:
    """Where `network` computes the first tensor that `other` has not and an output is made of.

    Rewriting leaves tensors out, so a tensor has departed only if all that is made of it has.
    """
    theirs, outputs = recorded(network, run)
    ours, _ = recorded(other, run)
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for value in ours.values:
        by_shape.setdefault(value.tensor.shape, []).append(value.tensor)

    def departs(value: Value) -> bool:
        return not any(same(value.tensor, x) for x in by_shape.get(value.tensor.shape, ()))

    made = (theirs.latest.get(id(output)) for output in outputs)
    departed, open_ends = set(), [value for value in made if value and departs(value)]
    while open_ends:
        departed.add(value := open_ends.pop())
        open_ends += [s for s in value.sources if s not in departed and departs(s)]
    return next((value.place for value in theirs.values if value in departed), None)


def recorded(network: nn.Module, run: Callable[[nn.Module], Any]) -> tuple[Recording, list[Any]]:
    """What a run computes, as far as it comes, and its outputs."""
    recording = Recording(network)
    try:
        with recording:
            return recording, pytree.tree_leaves(run(network))
    except Exception:
        return recording, []
