"""The recipe as a whole: loaded, checked across its sections, written as TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, model_validator
from typing_extensions import Self

from qdeploy.recipe.loading import read_table
from qdeploy.recipe.problems import validated
from qdeploy.recipe.sections import (
    CalibrateSection,
    DataSection,
    ExportSection,
    ModelSection,
    QuantizeSection,
    Section,
    TaskSection,
    TrainSection,
)


class Recipe(Section):
    """Everything that a run is made from. Without [quantize] the network is trained in float."""

    name: Annotated[str, Field(min_length=1)]
    model: ModelSection
    task: TaskSection = TaskSection()
    data: DataSection
    quantize: QuantizeSection = QuantizeSection(method="float")
    calibrate: CalibrateSection = CalibrateSection()
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _distillation_has_a_teacher(self) -> Self:
        if self.train.distill and self.quantize.method == "float":
            raise ValueError(
                "train.distill teaches a quantized network; remove it, or give quantize.method"
            )
        if self.train.distill and self.model.weights is None and not self.train.float_epochs:
            raise ValueError(
                "train.distill needs a trained float network to learn from: give the file of its "
                "weights as model.weights, or train it first, with train.float_epochs"
            )
        return self

    @model_validator(mode="after")
    def _what_is_only_calibrated_was_trained(self) -> Self:
        trained = self.model.weights is not None or self.train.float_epochs
        if self.train.epochs == 0 and not trained:
            raise ValueError(
                "train.epochs = 0 only calibrates a trained float network: give the file of its "
                "weights as model.weights, or train it first, with train.float_epochs"
            )
        if self.train.epochs and "calibrate" in self.model_fields_set:
            raise ValueError(
                "[calibrate] says what is done instead of training; remove it, or set train.epochs = 0"
            )
        return self

    @model_validator(mode="after")
    def _smoothed_labels_are_classes(self) -> Self:
        if self.train.label_smoothing and self.task.kind not in ("classification", "segmentation"):
            raise ValueError(
                "train.label_smoothing is of classes: remove it, or give your task an option of its own"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The recipe in the file `source` (*.toml) or of that name in the zoo.

        `extends = "name or path"` takes what this recipe leaves out from another, except the
        options of a different method; relative paths start at the folder of the recipe that gives
        them. Each override is `section.key=value`, the value in TOML or else plain text; a glob is
        quoted: `quantize.layers."conv*".weight_bits=2`. Without a `name` the recipe has the file's.
        Raises QdeployError for whatever is wrong with it.
        """
        table = read_table(source, overrides)
        origin = " with ".join([str(source), *overrides])
        return validated(cls, table, origin, Path(source).parent)

    def with_regimes(self, regimes: Mapping[str, object], origin: str) -> Self:
        """The recipe with other regimes, given by the names of their sections.

        Raises QdeployError that begins with `origin` for whatever is wrong with them.
        """
        table = self._table()
        for section, regime in regimes.items():
            table[section]["regime"] = regime
        return validated(type(self), table, origin)

    def to_toml(self, defaults: bool = True) -> str:
        """TOML that loads as an equal recipe; without `defaults` only in this version of qdeploy."""
        return tomli_w.dumps(_without_none(self._table(defaults)))

    def _table(self, defaults: bool = True) -> dict[str, Any]:
        unused = {"calibrate"} if self.train.epochs else None
        return self.model_dump(exclude=unused, exclude_defaults=not defaults)


def _without_none(value: Any) -> Any:
    """`value` without the keys whose value is None: TOML has no word for it."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value
