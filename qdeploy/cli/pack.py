"""The command `qdeploy pack`."""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.options import FilePath, reports_errors


@click.command()
@click.argument("model", type=FilePath())
@click.option(
    "-o", "--output", type=FilePath(dir_okay=False), help="Write here, and leave MODEL as it is."
)
@reports_errors
def pack(model: Path, output: Path | None) -> None:
    """Store the weights of an ONNX file in as many bits as they use, in place.

    For files of qdeploy that a tool unpacked (simplifiers, optimisers, ONNX Runtime's saved graphs) and for
    quantized files of other tools. When such a file is loaded, operators in it compute the very same weights
    again, which is checked before anything is written: outputs and kernels stay as they were. TensorRT alone
    reads no packed weights.

    The new file takes the place of the old one, whole or not at all, unless -o names another. If there is
    nothing to gain, nothing is written.

    A file that is as qdeploy wrote it is sealed anew. One that was changed since keeps its old seal,
    and `qdeploy inspect` goes on to say so.
    """
    from qdeploy.deploy.repack import repack
    from qdeploy.report.inspection import repacked_text

    click.echo(repacked_text(repack(model, output or model)))
