"""The regimes that a network brings along, in the words of convNet.pytorch.

`network.regime` and `network.data_regime` are lists of dicts such as
{"epoch": 15, "optimizer": "SGD", "lr": 1e-3} and {"epoch": 15, "input_size": 224}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from qdeploy.errors import QdeployError
from qdeploy.recipe import Phase, Recipe

ATTRIBUTES = {"train": "regime", "data": "data_regime"}
OTHER_NAMES = {"input_size": "image_size"}


def with_regimes_of(network: nn.Module, recipe: Recipe) -> Recipe:
    """The recipe, with the network's regimes where it has none of its own.

    Errors: QdeployError for an attribute that is no list of phases, or phases that cannot be.
    """
    brought = {
        section: phases_of(network, name)
        for section, name in ATTRIBUTES.items()
        if getattr(network, name, None) is not None and not getattr(recipe, section).regime
    }
    origin = f"the regimes that network {recipe.model.network!r} brings along"
    return recipe.with_regimes(brought, origin) if brought else recipe


def phases_of(network: nn.Module, name: str) -> list[dict[str, Any]]:
    given = getattr(network, name)
    if isinstance(given, list | tuple) and all(isinstance(phase, Mapping) for phase in given):
        return [dict(map(in_our_words, phase.items())) for phase in given]
    raise QdeployError(
        f"the {name} of {type(network).__name__} is {given!r}; it must be a list of dicts, such as "
        f'[{{"epoch": 0, ...}}, {{"epoch": 15, ...}}]'
    )


def in_our_words(item: tuple[Any, Any]) -> tuple[str, Any]:
    key, value = item
    if key == "optimizer" and isinstance(value, str):
        value = value.lower()
    return OTHER_NAMES.get(key, str(key)), value


def regime_phases(recipe: Recipe) -> Iterator[tuple[str, Phase]]:
    """Each phase with the name of its section."""
    for name in ATTRIBUTES:
        for phase in getattr(recipe, name).regime:
            yield name, phase


def regime_lines(recipe: Recipe) -> Iterator[str]:
    """Each phase in a line of words."""
    for name, phase in regime_phases(recipe):
        yield f"[{name}] from {start_of(phase)}: " + ", ".join(
            f"{key} = {value}" for key, value in phase.changes.items()
        )


def check_order(recipe: Recipe, steps_before: Callable[[int], int]) -> None:
    """Errors: QdeployError for phases that do not begin one after the other.

    steps_before: training steps before an epoch; it tells which of an epoch and a step is first.
    """
    for (section, before), (same, after) in pairwise(regime_phases(recipe)):
        first, second = (step_at_start(phase, steps_before) for phase in (before, after))
        if section == same and first >= second:
            raise QdeployError(
                f"the regime of [{section}] has {start_of(after)} behind {start_of(before)}, which "
                f"begin at steps {second} and {first}: list phases in the order of time"
            )


def step_at_start(phase: Phase, steps_before: Callable[[int], int]) -> int:
    """The step of the run that the phase begins at."""
    return steps_before(phase.epoch or 0) if phase.step is None else phase.step


def start_of(phase: Phase) -> str:
    return f"step {phase.step}" if phase.epoch is None else f"epoch {phase.epoch}"
