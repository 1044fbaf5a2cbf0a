"""The command `qdeploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from qdeploy.cli.options import AS_JSON, DATA_ROOT, DEVICE, PROVIDER, FilePath, reports_errors, show
from qdeploy.deploy.targets import available
from qdeploy.errors import QdeployError


@click.command()
@click.argument("run", type=FilePath(exists=True, file_okay=False))
@click.option(
    "-o", "--output", type=FilePath(dir_okay=False), help="ONNX file.  [default: RUN/model.onnx]"
)
@click.option(
    "--target",
    type=click.Choice(available()),
    help="The runtime that the file is for.  [default: as the recipe says, else cpu]",
)
@click.option(
    "--input",
    "input_type",
    type=click.Choice(["float32", "uint8"]),
    help="uint8: the file takes pixels and normalises them itself.  [default: as the recipe says]",
)
@click.option(
    "--readable",
    is_flag=True,
    default=None,
    help="Call all nodes and values after the network's modules, as in large files.",
)
@click.option(
    "--dynamic",
    type=click.Choice(["height", "width"]),
    multiple=True,
    help="An axis that the file takes in any size; may be given twice.  [default: as the recipe says]",
)
@click.option(
    "--triton",
    type=FilePath(file_okay=False),
    help="Also make a model repository for Triton Inference Server in this folder.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="What the task's first score may lose against float.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    help="Share of decisions, such as images in a class, that are those of training.",
)
@click.option(
    "--min-sqnr", type=float, help="dB of the outputs over their difference from training's."
)
@click.option(
    "--max-differing",
    type=click.IntRange(min=0),
    help="Codes that may differ from PyTorch's integers.",
)
@click.option("--max-size", type=click.IntRange(min=1), help="Bytes of the file.")
@click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="best: the epoch that did best on the validation set, or without one on the test set itself.",
)
@DATA_ROOT
@DEVICE
@PROVIDER
@click.option(
    "--samples", type=click.IntRange(min=1), help="Test images to validate on.  [default: all]"
)
@click.option(
    "--trace-layers",
    is_flag=True,
    help="Show every quantized tensor beside that of the integers in PyTorch.",
)
@AS_JSON
@reports_errors
def export(
    run: Path,
    output: Path | None,
    target: str | None,
    input_type: str | None,
    readable: bool | None,
    dynamic: tuple[str, ...],
    triton: Path | None,
    max_drop: float | None,
    min_agreement: float | None,
    min_sqnr: float | None,
    max_differing: int | None,
    max_size: int | None,
    checkpoint: Literal["last", "best"],
    data_root: Path | None,
    device: str,
    provider: str,
    samples: int | None,
    trace_layers: bool,
    as_json: bool,
) -> None:
    """Export the trained RUN as ONNX, validate it on the test set and write the report."""
    from qdeploy.pipeline.export import export_run, record_json
    from qdeploy.pipeline.measure import Conditions
    from qdeploy.report.table import record_table, trace_table

    conditions = Conditions(data_root, device, provider, samples)
    changes = {
        "target": target, "input": input_type, "readable": readable,
        "dynamic": list(dynamic) or None,
        "max_drop": max_drop, "min_agreement": min_agreement, "min_sqnr": min_sqnr,
        "max_differing": max_differing, "max_size": max_size,
    }  # fmt: skip
    record = export_run(
        run, output, changes=changes, checkpoint=checkpoint, conditions=conditions, triton=triton
    )
    if trace_layers and record.exactness is None:
        raise QdeployError(
            f"{run} is exported, but there is nothing to trace: it is a float run and has no quantized "
            "tensors, or its target is not cpu"
        )
    if as_json:
        show(record_json(record, trace_layers))
    else:
        show(record_table(record))
        if trace_layers and record.exactness is not None:
            show(trace_table(record.exactness.tensors))
        show(f"report: {run / 'report.html'}")
    if not all(gate.passed for gate in record.gates):
        raise click.exceptions.Exit(1)
