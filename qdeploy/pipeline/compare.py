"""compare: several run folders on one page. No torch is needed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from qdeploy.errors import QdeployError
from qdeploy.metrics import read_metrics
from qdeploy.recipe import QuantizeSection, Recipe
from qdeploy.record import Record
from qdeploy.report.comparison import Run, run_data
from qdeploy.run import RunFolder, recipe_file
from qdeploy.scores import read_scores


def compare(paths: Sequence[Path]) -> list[Run]:
    """The runs in the folders `paths`, in that order, each followed by its float baseline if any.

    Errors: QdeployError for a folder that is no run or is given twice, and for files in it that
    cannot be read.
    """
    return [run for path, name in zip(paths, names(paths), strict=True) for run in runs(path, name)]


def comparison_json(compared: Sequence[Run]) -> str:
    return json.dumps({"runs": [run_data(run) for run in compared]}, indent=2)


def names(paths: Sequence[Path]) -> list[str]:
    """A folder's name, or its whole path where two folders share the name."""
    folders = [path.resolve() for path in paths]
    for folder, count in Counter(folders).items():
        if count > 1:
            raise QdeployError(f"{folder} is given {count} times; give each run once")
    shared = Counter(folder.name for folder in folders)
    return [folder.name if shared[folder.name] == 1 else str(folder) for folder in folders]


def runs(path: Path, name: str) -> Iterator[Run]:
    """The run in a folder, and the float baseline that is nested in it."""
    folder = RunFolder(path)
    yield read_run(folder, name)
    if folder.float_run.recipe.is_file():
        yield read_run(folder.float_run, f"{name}, float", is_baseline=True)


def read_run(folder: RunFolder, name: str, is_baseline: bool = False) -> Run:
    recipe = Recipe.load(recipe_file(folder))
    return Run(
        name=name,
        method=recipe.quantize.method,
        bits=bits_of_most_layers(recipe.quantize),
        epochs=recipe.train.epochs,
        rows=read_metrics(folder.metrics),
        record=read_record(folder),
        is_baseline=is_baseline,
        scores=read_scores(folder.scores),
    )


def bits_of_most_layers(quantize: QuantizeSection) -> str:
    """As "w1a8"."""
    if quantize.method == "float":
        return "float"
    return f"w{quantize.weight_bits}a{quantize.act_bits or 'float'}"


def read_record(folder: RunFolder) -> Record | None:
    """Errors: QdeployError naming the file if it is no report of this version."""
    path = folder.reports[0]
    if not path.is_file():
        return None
    try:
        return Record.from_json(path.read_text("utf-8"))
    except (OSError, ValueError, QdeployError) as error:
        raise QdeployError(f"{path}: {error}") from error
