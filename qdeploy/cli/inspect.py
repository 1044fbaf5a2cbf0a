"""The command `qdeploy inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import AS_JSON, reports_errors, show


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@AS_JSON
@reports_errors
def inspect(model: Path, as_json: bool) -> None:
    """Show what is in an ONNX file: layers, bits, scales, bytes, and where it is from.

    Ends with 1 if the file is not as it was when qdeploy wrote it.
    """
    from qdeploy.deploy.inspect import inspect as inspect_file
    from qdeploy.report.inspection import contents_json, contents_tables

    contents = inspect_file(model)
    show(contents_json(contents) if as_json else contents_tables(contents))
    if contents.intact is False:
        raise click.exceptions.Exit(1)
