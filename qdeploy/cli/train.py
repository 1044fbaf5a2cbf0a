"""The command `qdeploy train`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import DATA_ROOT, DEVICE, FilePath, reports_errors

DEFAULT_RECIPE = "lenet5-digits-slb-w1a8"


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting."
)
@click.option("--epochs", type=click.IntRange(min=0), help="Short for --set train.epochs=N.")
@click.option(
    "--scan",
    type=click.Choice(["header", "full"]),
    help="Short for --set data.scan=...: what is read of each image file before training.",
)
@DATA_ROOT
@click.option("--download", is_flag=True, help="Fetch missing data sets.")
@DEVICE
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    help="Devices on each machine; they share each batch.  [default: 1, or as torchrun says]",
)
@click.option(
    "--num-nodes",
    type=click.IntRange(min=1),
    help="Machines.  [default: 1, or as torchrun says]",
)
@click.option(
    "-o",
    "--output",
    type=FilePath(),
    help="Run folder.  [default: runs/<recipe>-<time>]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option("--force", is_flag=True, help="Start anew in a folder that holds a run.")
@reports_errors
def train(
    recipe: str | None,
    overrides: tuple[str, ...],
    epochs: int | None,
    scan: str | None,
    data_root: Path | None,
    download: bool,
    device: str,
    devices: int | None,
    num_nodes: int | None,
    output: Path | None,
    resume: bool,
    force: bool,
) -> None:
    """Train RECIPE: a TOML file or the name of a zoo recipe (see `qdeploy models`).

    Without one, lenet5-digits-slb-w1a8; with --resume, the recipe of the run.
    """
    if resume and output is None:
        raise click.UsageError("--resume needs the run folder: give it with -o")
    if resume and force:
        raise click.UsageError("--resume goes on with a run, --force starts it anew: give one")
    if epochs is not None:
        overrides = (*overrides, f"train.epochs={epochs}")
    if scan is not None:
        overrides = (*overrides, f"data.scan={scan}")

    from qdeploy import processes
    from qdeploy.pipeline.train import train as train_recipe
    from qdeploy.recipe import Recipe
    from qdeploy.run import RunFolder, recipe_file

    source = recipe or (recipe_file(RunFolder(output)) if resume and output else DEFAULT_RECIPE)
    run = train_recipe(
        Recipe.load(source, overrides),
        output,
        data_root=data_root,
        download=download,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        resume=resume,
        force=force,
    )
    if processes.rank() == 0:
        click.echo(f"trained: {run.path}\nnext:    qdeploy export {run.path}")
