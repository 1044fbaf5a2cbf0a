"""The command line: options in, one call of the pipeline, print.

Heavy libraries are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdeploy.deploy.targets import available
from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from qdeploy.methods import Method

DEFAULT_RECIPE = "lenet5-digits-slb-w1a8"
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


DATA_ROOT = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qdeploy")
def main() -> None:
    """Take a PyTorch network to 1 to 8 bits and ship it as ONNX, proven on ONNX Runtime."""


@main.command()
@click.argument("recipe", required=False)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting."
)
@click.option("--epochs", type=click.IntRange(min=0), help="Short for --set train.epochs=N.")
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
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/<recipe>-<time>]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option("--force", is_flag=True, help="Start anew in a folder that holds a run.")
@reports_errors
def train(
    recipe: str | None,
    overrides: tuple[str, ...],
    epochs: int | None,
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

    from qdeploy import processes
    from qdeploy.pipeline.train import run_recipe
    from qdeploy.pipeline.train import train as train_recipe
    from qdeploy.recipe import Recipe

    source = recipe or (run_recipe(output) if resume and output else DEFAULT_RECIPE)
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


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="ONNX file.  [default: RUN/model.onnx]"
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
    "--triton",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also make a model repository for Triton Inference Server in this folder.",
)
@click.option(
    "--max-drop", type=click.FloatRange(min=0), help="Points of top-1 it may lose against float."
)
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), help="Share of images with the trained top-1."
)
@click.option("--max-size", type=click.IntRange(min=1), help="Bytes of the file.")
@click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="best: the epoch that did best on the test set itself.",
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
    help="Compare every quantized tensor with the integers in PyTorch.",
)
@AS_JSON
@reports_errors
def export(
    run: Path,
    output: Path | None,
    target: str | None,
    input_type: str | None,
    triton: Path | None,
    max_drop: float | None,
    min_agreement: float | None,
    max_size: int | None,
    checkpoint: str,
    data_root: Path | None,
    device: str,
    provider: str,
    samples: int | None,
    trace_layers: bool,
    as_json: bool,
) -> None:
    """Export the trained RUN as ONNX, validate it on the test set and write the report."""
    from rich.console import Console

    from qdeploy.pipeline.export import export_run, record_json, trace_run
    from qdeploy.report.table import record_table, trace_table

    places: dict[str, Any] = {
        "checkpoint": checkpoint, "data_root": data_root, "device": device, "provider": provider,
    }  # fmt: skip
    gates = {"max_drop": max_drop, "min_agreement": min_agreement, "max_size": max_size}
    given = {name: limit for name, limit in gates.items() if limit is not None}
    traced = trace_run(run, **places) if trace_layers else None
    form: dict[str, Any] = {"target": target, "input_type": input_type, "triton": triton}
    record = export_run(run, output, gates=given, samples=samples, **form, **places)
    if as_json:
        click.echo(record_json(record, traced))
    else:
        Console().print(record_table(record))
        if traced is not None:
            Console().print(trace_table(traced))
        click.echo(f"report: {run / 'report.html'}")
    if not all(gate.passed for gate in record.gates):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@PROVIDER
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="On the CPU."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Images in one run; may be given several times.",
)
@click.option("--layers", is_flag=True, help="List every kernel that ran, layer by layer.")
@click.option("--data", "dataset", help="Measure top-1 on this data set as well.")
@DATA_ROOT
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for benchmark.json.")
@AS_JSON
@reports_errors
def benchmark(
    models: tuple[Path, ...],
    provider: str,
    threads: int,
    batch_sizes: tuple[int, ...],
    layers: bool,
    dataset: str | None,
    data_root: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure ONNX files on this machine; ratios are against the first."""
    from rich.console import Console

    from qdeploy.pipeline.benchmark import benchmark as run_benchmark
    from qdeploy.pipeline.benchmark import benchmark_json, write_benchmark
    from qdeploy.report.table import benchmark_table, kernel_table

    result, accuracies = run_benchmark(
        models,
        provider=provider,
        threads=threads,
        batch_sizes=batch_sizes,
        dataset=dataset,
        data_root=data_root,
    )
    if as_json:
        click.echo(benchmark_json(result, accuracies))
    else:
        Console().print(benchmark_table(result))
        for placed in result.placements if layers else ():
            Console().print(kernel_table(placed))
        for row in accuracies:
            click.echo(f"{row.file}: top-1 {row.top1:.2%} of {row.samples} images of {row.title}")
    if output is not None:
        click.echo(f"written: {write_benchmark(result, accuracies, output)}", err=as_json)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@AS_JSON
@reports_errors
def inspect(model: Path, as_json: bool) -> None:
    """Show what is in an ONNX file: layers, bits, scales, bytes, and where it is from.

    Ends with 1 if the file is not as it was when qdeploy wrote it.
    """
    from rich.console import Console

    from qdeploy.deploy.inspect import inspect as inspect_file
    from qdeploy.report.inspection import contents_json, contents_tables

    contents = inspect_file(model)
    if as_json:
        click.echo(contents_json(contents))
    else:
        Console().print(contents_tables(contents))
    if contents.intact is False:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("comparison.html"),
    show_default=True,
    help="The page.",
)
@AS_JSON
@reports_errors
def report(runs: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Compare RUNS: their curves on one page, and a table."""
    from rich.console import Console

    from qdeploy.pipeline.compare import compare, comparison_json
    from qdeploy.report.table import comparison_table
    from qdeploy.report.write import write_comparison

    compared = compare(runs)
    write_comparison(compared, output)
    if as_json:
        click.echo(comparison_json(compared))
    else:
        Console().print(comparison_table(compared))
    click.echo(f"written: {output}", err=as_json)


@main.command()
@click.argument("method", required=False)
@reports_errors
def methods(method: str | None) -> None:
    """List the quantization methods, or explain METHOD and its options."""
    from qdeploy.methods import available, find

    if method is not None:
        click.echo(explained(find(method)))
        return
    for name in available():
        try:
            found = find(name)
        except QdeployError as error:  # of another package; ours are listed all the same
            click.echo(f"{name:14} {error}", err=True)
            continue
        click.echo(f"{name:14} {found.summary}  [{widths(found)}]")


def explained(method: Method) -> str:
    """What it is, and its options as a recipe has them, in TOML with their defaults."""
    lines = [method.summary, method.paper, widths(method)]
    if fields := method.options.model_fields:
        lines += [
            "",
            "[quantize.options]",
            *(option(name, field) for name, field in fields.items()),
        ]
        lines += ["", cleandoc(method.options.__doc__ or "")]
    return "\n".join(lines)


def option(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return f"# {name}: has to be given"
    import tomli_w

    default = field.get_default(call_default_factory=True)
    return f"# {name}: not given" if default is None else tomli_w.dumps({name: default}).rstrip()


def widths(method: Method) -> str:
    weights, acts = spans(method.weight_bits), spans(method.act_bits)
    return f"bits of weights {weights}; of activations {acts} or float"


def spans(bits: Sequence[int]) -> str:
    """The numbers, those in a row as one span: 1-8, 16."""
    bits = sorted(set(bits))
    starts = [bit for bit in bits if bit - 1 not in bits]
    ends = [bit for bit in bits if bit + 1 not in bits]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in pairs)


@main.command()
@reports_errors
def models() -> None:
    """List the networks and recipes of the zoo."""
    from qdeploy.models import NETWORKS
    from qdeploy.recipe import zoo_recipes, zoo_summary

    click.echo("networks: " + ", ".join(NETWORKS))
    for name in zoo_recipes():
        click.echo(f"{name:36} {zoo_summary(name)}")
