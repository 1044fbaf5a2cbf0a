"""The regimes that a network brings along, in the words of convNet.pytorch.

`network.regime` and `network.data_regime` are lists of dicts such as
{"epoch": 15, "optimizer": "SGD", "lr": 1e-3} and {"epoch": 15, "input_size": 224}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def regime_lines(recipe: Recipe) -> Iterator[str]:
    """Each phase in a line of words."""
    for name in ATTRIBUTES:
        for phase in getattr(recipe, name).regime:
            yield f"[{name}] from {start_of(phase)}: " + ", ".join(
                f"{key} = {value}" for key, value in phase.changes.items()
            )


def start_of(phase: Phase) -> str:
    return f"step {phase.step}" if phase.epoch is None else f"epoch {phase.epoch}"
