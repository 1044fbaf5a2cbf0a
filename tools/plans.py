"""The rows of the accuracy tables, as tools/plans/*.toml name them, and where their figures are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli
from pydantic import ConfigDict, TypeAdapter

from qdeploy.errors import QdeployError
from qdeploy.recipe import Recipe

ROOT = Path(__file__).parent.parent
PLANS = ROOT / "tools" / "plans"
# What leaves a recipe's training as it is: how its float weights came about, and names.
HARMLESS = ("train.seed=", "train.float_epochs=0", "data.title=")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A recipe and what it does differently.

    starts_from   the row of the same plan whose last weights, of the same seed, it starts from
    about         the question that the row answers; tables of what was tried go by it
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    recipe: str
    set: tuple[str, ...] = ()
    starts_from: str | None = None
    about: str | None = None


@dataclass(frozen=True)
class Plan:
    """The rows of a table.

    baseline   the float row that the others lose accuracy against
    seeds      of every row
    set        changes every recipe
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    rows: dict[str, Row]
    baseline: str = "float"
    seeds: tuple[int, ...] = (0,)
    set: tuple[str, ...] = ()
    name: str = field(default="", kw_only=True)

    @classmethod
    def load(cls, name: str) -> Plan:
        values = tomli.loads((PLANS / f"{name}.toml").read_text())
        plan = TypeAdapter(cls).validate_python({**values, "name": name})
        for row in plan.rows.values():
            if row.starts_from is not None and row.starts_from not in plan.rows:
                raise QdeployError(f"{name}: no row {row.starts_from!r} to start from")
        return plan

    def overrides(self, row: Row, seed: int) -> tuple[str, ...]:
        """What the row changes in its recipe, as `qdeploy train --set` takes it."""
        start = ("train.float_epochs=0",) if row.starts_from else ()
        return (*self.set, *row.set, *start, f"train.seed={seed}")

    @property
    def results(self) -> Path:
        return ROOT / "results" / f"{self.name}.json"

    def identity(self, name: str, seed: int) -> Figures:
        """What a row is made of: its recipe, what that is changed to, and the same of its start."""
        row = self.rows[name]
        start = None if row.starts_from is None else self.identity(row.starts_from, seed)
        return {
            "recipe": row.recipe,
            "recipe_sha256": fingerprint(row.recipe),
            "overrides": list(self.overrides(row, seed)),
            "starts_from": start,
        }

    def figures(self) -> list[Figures]:
        """What was measured of the rows as the plan has them today, in its order."""
        found = json.loads(self.results.read_text()) if self.results.exists() else []
        names = list(self.rows)
        of_today = [
            one
            for one in found
            if one["row"] in names and self.identity(one["row"], one["seed"]).items() <= one.items()
        ]
        return sorted(of_today, key=lambda one: (names.index(one["row"]), one["seed"]))


@cache
def fingerprint(recipe: str) -> str:
    """SHA-256 of what a recipe says, however it is written: another one, another row."""
    said = recipe_of(recipe).to_toml(defaults=False).replace(f"{ROOT}/", "")
    return hashlib.sha256(said.encode()).hexdigest()


def recipe_of(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of the zoo, or a file of this repository, such as "examples/tasks/rows.toml"."""
    return Recipe.load(ROOT / name if name.endswith(".toml") else name, overrides)


def plans() -> list[str]:
    return sorted(file.stem for file in PLANS.glob("*.toml"))


def is_whole(figures: Figures) -> bool:
    """Whether this is the recipe as it stands, with all of its epochs."""
    return all(override.startswith(HARMLESS) for override in figures["overrides"])
