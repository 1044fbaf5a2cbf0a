"""The command `qdeploy benchmark`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from qdeploy.cli.options import AS_JSON, DATA_ROOT, PROVIDER, FilePath, reports_errors, show

SHAPE = re.compile(r"(.+)=([1-9]\d*(?:x[1-9]\d*)*)")


def _shapes(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """{input: shape} of texts such as input=1x3x480x640."""
    found = {}
    for text in given:
        match = SHAPE.fullmatch(text)
        if match is None or match[1] in found:
            raise click.BadParameter(
                f"given {text!r}; allowed: the name of an input and its shape, each once, as in "
                "input=1x3x480x640"
            )
        found[match[1]] = tuple(map(int, match[2].split("x")))
    return found


@click.command()
@click.argument("models", nargs=-1, required=True, type=FilePath())
@PROVIDER
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="On the CPU."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    help="Inputs in one run; may be given several times.  [default: as --shape says, else 1]",
)
@click.option(
    "--shape",
    "shapes",
    metavar="INPUT=1x3x480x640",
    multiple=True,
    callback=_shapes,
    help="Of an input whose sizes a file leaves open; may be given for several.",
)
@click.option(
    "--size", type=click.IntRange(min=1), help="Of every length that is open and has no --shape."
)
@click.option(
    "--cuda-graph",
    is_flag=True,
    help="Time replays of a CUDA graph; for files that CUDA runs alone.",
)
@click.option("--layers", is_flag=True, help="List every kernel that ran, layer by layer.")
@click.option("--data", "dataset", help="Measure top-1 on this data set as well.")
@DATA_ROOT
@click.option("-o", "--output", type=FilePath(), help="Folder for benchmark.json.")
@AS_JSON
@reports_errors
def benchmark(
    models: tuple[Path, ...],
    provider: str,
    threads: int,
    batch_sizes: tuple[int, ...],
    shapes: dict[str, tuple[int, ...]],
    size: int | None,
    cuda_graph: bool,
    layers: bool,
    dataset: str | None,
    data_root: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure ONNX files on this machine; ratios are against the first."""
    from qdeploy.pipeline.benchmark import benchmark as run_benchmark
    from qdeploy.pipeline.benchmark import benchmark_json, write_benchmark
    from qdeploy.report.table import benchmark_table, kernel_table

    result, accuracies = run_benchmark(
        models,
        provider=provider,
        threads=threads,
        batch_sizes=batch_sizes or None,
        shapes=shapes,
        size=size,
        cuda_graph=cuda_graph,
        dataset=dataset,
        data_root=data_root,
    )
    if as_json:
        show(benchmark_json(result, accuracies))
    else:
        show(benchmark_table(result), *map(kernel_table, result.placements if layers else ()))
        for row in accuracies:
            click.echo(f"{row.file}: top-1 {row.top1:.2%} of {row.samples} images of {row.title}")
    if output is not None:
        click.echo(f"written: {write_benchmark(result, accuracies, output)}", err=as_json)
