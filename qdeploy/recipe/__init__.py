"""The recipe: everything that a run is made from, as one validated TOML file.

A recipe is read from a file or, by name, from the zoo; single keys are changed with overrides
such as `train.lr=0.01`. Whatever is wrong with it is a `QdeployError` that names the key.
"""

from qdeploy.recipe.loading import zoo_recipes, zoo_summary
from qdeploy.recipe.problems import validated
from qdeploy.recipe.recipe import Recipe
from qdeploy.recipe.sections import (
    CalibrateSection,
    DataPhase,
    DataSection,
    ExportSection,
    ModelSection,
    Phase,
    QuantizeSection,
    TaskSection,
    TrainPhase,
    TrainSection,
)

__all__ = [
    "CalibrateSection",
    "DataPhase",
    "DataSection",
    "ExportSection",
    "ModelSection",
    "Phase",
    "QuantizeSection",
    "Recipe",
    "TaskSection",
    "TrainPhase",
    "TrainSection",
    "validated",
    "zoo_recipes",
    "zoo_summary",
]
