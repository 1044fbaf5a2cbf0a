"""What the terminal shows after an export, after a benchmark and of several runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qdeploy.record import BenchmarkResult, Latency, Placement, Record, TensorDifference
from qdeploy.report.advice import advice
from qdeploy.report.comparison import Run, epochs, figures, method, shared_title
from qdeploy.report.processors import warning
from qdeploy.report.sections import KERNEL_COLUMNS, kernel_row
from qdeploy.report.summary import computing, covered, exceptions, headlines
from qdeploy.report.words import capitalized, exact, plural, provider, significant, size, times


def _titled(title: str, **settings: Any) -> Table:
    """An empty table between two lines, as all of them look."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.HORIZONTALS,
        padding=(0, 1, 0, 0),
        **settings,
    )


def record_table(record: Record) -> Table:
    """The headline figures and the gates of an export; print it with rich."""
    table = _titled(f"{record.name}: {record.method} on {record.dataset.title}", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold cyan", no_wrap=True, justify="right")
    table.add_column()
    for headline in headlines(record):
        table.add_row(headline.label, headline.value, headline.note)
    for sentence in advice(record):
        table.add_row("Note", "", sentence)
    for gate in record.gates:
        verdict = Text("passed", "bold green") if gate.passed else Text("FAILED", "bold red")
        table.add_row("Gate", verdict, f"{gate.name} {exact(gate.limit)}: {exact(gate.value)}")
    return table


def trace_table(differences: Sequence[TensorDifference]) -> Table:
    """A row for each quantized tensor, in the order of the network."""
    table = _titled("The ONNX file against the integers in PyTorch, tensor by tensor")
    table.add_column("tensor", overflow="fold")
    for heading in ("elements", "differ", "at most"):
        table.add_column(heading, justify="right")
    for row in differences:
        steps = plural(row.max_steps, "step")
        table.add_row(row.name, f"{row.elements:,}", f"{row.share:.4%}", steps)
    return table


def benchmark_table(result: BenchmarkResult) -> Table:
    """A row for each file and batch size, times in ms; print it with rich."""
    table = _titled(f"{_setting(result)}; times in ms", caption=_placements(result))
    table.add_column("file")
    copying = any(row.copied_ms is not None for row in result.latency)
    columns = ("size", "load", "batch", "p50", "p90", "p99", "images/s", "speed")
    for name in columns + ("copied",) * copying:
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.latency:
        copied = (significant(row.copied_ms),) if row.copied_ms is not None else ()
        table.add_row(*_cells(row), *copied, end_section=row.file == result.latency[-1].file)
    return table


def kernel_table(placed: Placement) -> Table:
    """A row for each kernel that ran for one file, in order; print it with rich."""
    table = _titled(f"{placed.file}: {covered(placed)}")
    for name in KERNEL_COLUMNS[:2]:
        table.add_column(name.lower())
    for name in KERNEL_COLUMNS[2:]:
        numeric = name in ("Time", "Share")
        table.add_column(name.lower(), justify="right" if numeric else "left", no_wrap=True)
    for kernel in placed.kernels:
        layer, operator, *cells = kernel_row(kernel)
        table.add_row(Shortened(layer), Shortened(operator), *cells)
    return table


def comparison_table(runs: Sequence[Run]) -> Table:
    """A row for each run, shares in percent; print it with rich."""
    of = capitalized(shared_title(runs)) or "Scores"
    table = _titled(
        f"{of} and agreement{_units(runs)}; ratio of the float file to this one",
        caption=Text("\n".join(f"{run.name}: {run.state}" for run in runs if not run.is_baseline)),
    )
    table.add_column("run")
    table.add_column("method", no_wrap=True)
    for name in ("epochs", "last", "best", "ONNX", "agree", "bytes", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        shown = (cell.removesuffix(" %") for cell in figures(run))
        table.add_row(Shortened(run.name), method(run), epochs(run), *shown)
    return table


def _units(runs: Sequence[Run]) -> str:
    return " in %" if all(run.headline.is_share for run in runs) else ""


@dataclass(frozen=True)
class Shortened:
    """A name that gives up its middle where its column is too narrow: how it ends tells most."""

    name: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(len(self.name), 10), len(self.name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(self.name, options.max_width), no_wrap=True)


def shorten(name: str, width: int) -> str:
    """`name` in at most `width` characters: a third of its beginning, an ellipsis, its end."""
    if len(name) <= width:
        return name
    head = (width - 1) // 3
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def _cells(row: Latency) -> tuple[str | Shortened, ...]:
    return (
        Shortened(row.file),
        size(row.file_bytes),
        significant(row.load_ms),
        str(row.batch),
        *map(significant, (row.p50_ms, row.p90_ms, row.p99_ms, row.images_per_second)),
        times(row.speedup),
    )


def _setting(result: BenchmarkResult) -> str:
    """All files of a benchmark run in one setting: "1 thread, CPU provider, on AMD EPYC".

    Of a GPU also where the data lay; "copied" is the median with copies from and to host memory.
    """
    first = result.latency[0]
    on_cpu = first.provider.startswith("CPU")
    machine = result.machine
    sets = f" ({', '.join(machine.instructions)})" if machine.instructions else ""
    device = f"{machine.cpu}{sets}" if on_cpu else machine.gpu or "GPU"
    data = "" if on_cpu else f", data {first.data}{', as a CUDA graph' * first.cuda_graph}"
    threads = plural(first.threads, "thread")
    return f"{threads}, {provider(first.provider)} provider, on {device}{data}"


def _placements(result: BenchmarkResult) -> str:
    lines = []
    warnings = {
        found.file: warning(found, result.machine) for found in result.saturation if found.layers
    }
    for placed in result.placements:
        known = f"{covered(placed)}; " if placed.coverage is not None else ""
        lines.append(f"{placed.file}  {known}{computing(placed)}")
        told = (*exceptions(placed), warnings.get(placed.file))
        lines += [f"  {line}" for line in told if line]
    return "\n".join(lines)
