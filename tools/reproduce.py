"""Trains, exports and validates the rows of a table, and keeps their figures in results/PLAN.json.

    python tools/reproduce.py mnist --data-root DATA                   # all rows, all seeds
    python tools/reproduce.py mnist slb-w1a8 --seed 0 --data-root DATA # one row, one seed

tools/plans/PLAN.toml names the rows. One that is there already is skipped, a run that was cut off
goes on, and several of these commands may run at once. tools/tables.py makes tables of the file.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
from filelock import FileLock
from plans import ROOT, Figures, Plan, plans, recipe_of

import qdeploy
from qdeploy.cli.options import reports_errors
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.pipeline.export import export_run
from qdeploy.pipeline.measure import Conditions
from qdeploy.pipeline.train import differing, train
from qdeploy.recipe import Recipe
from qdeploy.record import Record
from qdeploy.run import RunFolder
from qdeploy.training.device import pick_device


@dataclass(frozen=True)
class Place:
    """Where the runs of a plan are, and what they run on."""

    runs: Path
    data_root: Path | None
    device: str

    def run(self, plan: Plan, row: str, seed: int) -> RunFolder:
        return RunFolder(self.runs / plan.name / f"{row}-s{seed}")


@click.command()
@click.argument("plan", type=click.Choice(plans()))
@click.argument("rows", nargs=-1)
@click.option("--seed", "seeds", type=int, multiple=True, help="In place of the plan's seeds.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where the data sets are.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--device", default="auto", show_default=True)
@reports_errors
def main(
    plan: str,
    rows: tuple[str, ...],
    seeds: tuple[int, ...],
    data_root: Path | None,
    runs: Path,
    device: str,
) -> None:
    """Adds the ROWS of PLAN, all of them by default, to its results."""
    table = Plan.load(plan)
    if unknown := set(rows) - set(table.rows):
        raise click.UsageError(
            f"{plan} has no row {', '.join(sorted(unknown))}; it has {', '.join(table.rows)}"
        )
    place = Place(runs, data_root, device)
    failed = []
    for name in rows or table.rows:
        for seed in seeds or table.seeds:
            try:
                measure(table, name, seed, place)
            except QdeployError as error:
                failed.append(f"{name}, seed {seed}: {error}")
    if failed:
        raise QdeployError("\n".join(failed))


def measure(plan: Plan, name: str, seed: int, place: Place) -> None:
    """Adds one row to the results, and before it the one that it starts from, unless they are there."""
    run, start = place.run(plan, name, seed), plan.rows[name].starts_from
    if start is not None:
        measure(plan, start, seed, place)
    with locked(run):
        if is_there(plan, name, seed):
            click.echo(f"{name}, seed {seed}: in {plan.results.name} already")
            return
        recipe = trained(plan, name, seed, place)
        record = export_run(run.path, conditions=Conditions(place.data_root, place.device))
    gpu = pick_device(place.device).type == "cuda"
    figures = {
        "row": name,
        "seed": seed,
        "command": f"python tools/reproduce.py {plan.name} {name} --seed {seed} --data-root DATA",
        **plan.identity(name, seed),
        "device": record.machine.gpu if gpu else record.machine.cpu,
        **figures_of(record, recipe),
    }
    keep(plan.results, figures)


def trained(plan: Plan, name: str, seed: int, place: Place) -> Recipe:
    """Trains a row's run to its end, after the one that it starts from; gives its recipe.

    What is there already is gone on with; a run of another recipe, as after a change of the plan,
    is made anew. The results may be there without the runs: they come with the repository.
    """
    row, run = plan.rows[name], place.run(plan, name, seed)
    overrides = list(plan.overrides(row, seed))
    if row.starts_from is not None:
        start = place.run(plan, row.starts_from, seed)
        with locked(start):
            trained(plan, row.starts_from, seed, place)
        overrides.append(f"model.weights={start.last.resolve()}")
    recipe = recipe_of(row.recipe, overrides)
    began = Recipe.load(run.recipe).model_dump() if run.recipe.is_file() else None
    same = began is not None and not list(differing(began, recipe.model_dump()))
    train(
        recipe,
        run.path,
        data_root=place.data_root,
        device=place.device,
        resume=same,
        force=not same,
    )
    return recipe


def locked(run: RunFolder) -> FileLock:
    """Several commands may want one run: the others wait until it is trained."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{run.path}.lock")


def figures_of(record: Record, recipe: Recipe) -> Figures:
    """The figures of a row, and what they were measured with and on."""
    return {
        "method": record.method,
        "bits": [recipe.quantize.weight_bits, recipe.quantize.act_bits],
        "epochs": recipe.train.epochs,
        "float_epochs": recipe.train.float_epochs,
        "data": asdict(record.dataset),
        "scores": [asdict(score) for score in record.scores],
        "accuracy": asdict(record.accuracy),
        "agreement": json.loads(record.to_json())["agreement"],
        "codes": codes_of(record),
        "size": asdict(record.size),
        "latency": {row.file: row.p50_ms for row in record.latency},
        "seconds": sum(line["seconds"] or 0 for line in record.training),
        "provider": record.latency[0].provider,
        "created": record.created,
        "versions": {
            "qdeploy": qdeploy.__version__,
            **{name: version(name) for name in ("torch", "onnx")},
            "onnxruntime": record.machine.onnxruntime,
            "python": record.machine.python,
            "commit": commit(),
        },
    }


def codes_of(record: Record) -> Figures | None:
    """How many codes of integer kernels were compared, and how many of them differ."""
    if record.exactness is None:
        return None
    return {"compared": record.exactness.compared, "differing": record.exactness.differing}


def commit() -> str:
    """The commit of the code that was run, with a "+" if it was changed since.

    A copy of the tree without its history is told by QDEPLOY_COMMIT.
    """
    if told := os.environ.get("QDEPLOY_COMMIT"):
        return told
    changed = git("status", "--porcelain", "--", "qdeploy")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def is_there(plan: Plan, row: str, seed: int) -> bool:
    return any((figures["row"], figures["seed"]) == (row, seed) for figures in plan.figures())


def keep(results: Path, new: Figures) -> None:
    """Adds a row, in the place of an older one of the same name and seed."""
    with FileLock(f"{results}.lock"):
        old = json.loads(results.read_text()) if results.exists() else []
        rows = sorted([*(row for row in old if _key(row) != _key(new)), new], key=_key)
        with atomic_write(results) as file:
            file.write((json.dumps(rows, indent=1) + "\n").encode())


def _key(figures: Figures) -> tuple[str, int]:
    return figures["row"], figures["seed"]


if __name__ == "__main__":
    main()
