"""The rows of the accuracy tables, as tools/plans/*.toml name them, and where their figures are."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

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

    rows: dict[str, Row]
    baseline: str = "float"
    seeds: tuple[int, ...] = (0,)
    set: tuple[str, ...] = ()
    name: str = field(default="", kw_only=True)

    @classmethod
    def load(cls, name: str) -> Plan:
        values = tomllib.loads((PLANS / f"{name}.toml").read_text())
        return TypeAdapter(cls).validate_python({**values, "name": name})

    def overrides(self, row: Row, seed: int) -> tuple[str, ...]:
        """What the row changes in its recipe, as `qdeploy train --set` takes it."""
        start = ("train.float_epochs=0",) if row.starts_from else ()
        return (*self.set, *row.set, *start, f"train.seed={seed}")

    @property
    def results(self) -> Path:
        return ROOT / "results" / f"{self.name}.json"

    def figures(self) -> list[Figures]:
        """What was measured of the rows as the plan has them today, in its order."""
        found = json.loads(self.results.read_text()) if self.results.exists() else []
        of_today = [figures for figures in found if self._is_of_today(figures)]
        names = list(self.rows)
        return sorted(of_today, key=lambda figures: names.index(figures["row"]))

    def _is_of_today(self, figures: Figures) -> bool:
        row = self.rows.get(figures["row"])
        if row is None:
            return False
        overrides = list(self.overrides(row, figures["seed"]))
        return (figures["recipe"], figures["overrides"]) == (row.recipe, overrides)


def plans() -> list[str]:
    return sorted(file.stem for file in PLANS.glob("*.toml"))


def is_whole(figures: Figures) -> bool:
    """Whether this is the recipe as it stands, with all of its epochs."""
    return all(override.startswith(HARMLESS) for override in figures["overrides"])
