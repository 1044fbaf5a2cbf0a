"""The command `qdeploy inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import AS_JSON, FilePath, reports_errors, show

EXIT_CODES = {"changed": 1, "lost": 3}


@click.command()
@click.argument("model", type=FilePath())
@AS_JSON
@reports_errors
def inspect(model: Path, as_json: bool) -> None:
    """Show what is in an ONNX file: layers, bits, scales, bytes, and where it is from.

    \b
    Ends with
      0  if weights and graph are as qdeploy wrote them, or qdeploy did not write the file;
      1  if they were changed since, or the file cannot be read;
      3  if qdeploy wrote the file and a tool dropped its hash, so that this cannot be said.
    """
    from qdeploy.deploy.inspect import inspect as inspect_file
    from qdeploy.report.inspection import contents_json, contents_tables

    contents = inspect_file(model)
    show(contents_json(contents) if as_json else contents_tables(contents))
    raise click.exceptions.Exit(EXIT_CODES.get(contents.seal, 0))
