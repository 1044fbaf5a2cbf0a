"""The command `qdeploy predict`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import AS_JSON, PROVIDER, FilePath, reports_errors


@click.command()
@click.argument("model", type=FilePath())
@click.argument("pictures", nargs=-1, required=True, type=FilePath())
@PROVIDER
@AS_JSON
@reports_errors
def predict(model: Path, pictures: tuple[Path, ...], provider: str, as_json: bool) -> None:
    """Say what is on PICTURES: files, or folders of them.

    MODEL is an exported file, whose metadata says how a picture becomes its input. Each picture gets its
    class and the share of it, of more than three classes the three likeliest.
    """
    from qdeploy.pipeline.predict import predict as predictions_of
    from qdeploy.pipeline.predict import predictions_json

    found = predictions_of(model, pictures, provider)
    if as_json:
        click.echo(predictions_json(list(found)))
        return
    for prediction in found:
        classes = (f"{guess.name} {guess.share:.4f}" for guess in prediction.classes)
        click.echo("  ".join([prediction.picture, *classes]))
