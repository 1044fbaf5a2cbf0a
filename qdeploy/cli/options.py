"""What commands share: options, and how errors of the user are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from qdeploy.errors import QdeployError

INTERRUPTED = 130


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """A QdeployError is the user's to mend: its message, exit code 1, no traceback."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except QdeployError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)

    return run


class FilePath(click.Path):
    """A path; an empty one, as a shell makes of a variable that is not set, is refused."""

    def __init__(self, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists, file_okay, dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the path is empty: give one, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


def show(*parts: object) -> None:
    """Prints text as it is, and what rich draws (tables, groups) as wide as the terminal."""
    from rich.console import Console

    for part in parts:
        if isinstance(part, str):
            click.echo(part)
        else:
            Console().print(part)


DATA_ROOT = click.option(
    "--data-root",
    type=FilePath(),
    help="Where the data sets are, in place of data.root.",
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where PyTorch runs; auto is cuda where there is one.",
)
PROVIDER = click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Where ONNX Runtime runs; a provider that is named and missing is an error.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
