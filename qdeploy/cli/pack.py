"""The command `qdeploy pack`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import reports_errors


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write here, and leave MODEL as it is."
)
@reports_errors
def pack(model: Path, output: Path | None) -> None:
    """Store the weights of an ONNX file in as many bits as they use, in place.

    For files of qdeploy that a tool unpacked (simplifiers, optimisers, ONNX Runtime's saved graphs) and
    quantized files of other tools. Integer weights that use few levels are packed; they are computed again when the file
    is loaded, to the same codes, which is checked before anything is written. So it gives the same
    outputs, by the same kernels. The new file takes the place of the old one whole or not at all;
    if there is nothing to gain, nothing is written. TensorRT reads no packed weights.

    A file that is as qdeploy wrote it is sealed anew. One that was changed since keeps its old seal,
    and `qdeploy inspect` goes on to say so.
    """
    from qdeploy.deploy.repack import repack
    from qdeploy.report.inspection import repacked_text

    click.echo(repacked_text(repack(model, output or model)))
