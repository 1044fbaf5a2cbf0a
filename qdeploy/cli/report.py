"""The command `qdeploy report`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import AS_JSON, FilePath, reports_errors, show


@click.command()
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=FilePath(exists=True, file_okay=False),
)
@click.option(
    "-o",
    "--output",
    type=FilePath(dir_okay=False),
    default=Path("comparison.html"),
    show_default=True,
    help="The page.",
)
@AS_JSON
@reports_errors
def report(runs: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Compare RUNS: their curves on one page, and a table."""
    from qdeploy.pipeline.compare import compare, comparison_json
    from qdeploy.report.table import comparison_table
    from qdeploy.report.write import write_comparison

    compared = compare(runs)
    write_comparison(compared, output)
    show(comparison_json(compared) if as_json else comparison_table(compared))
    click.echo(f"written: {output}", err=as_json)
