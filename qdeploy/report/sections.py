"""The sections of the report, in order: Markdown and HTML walk SECTIONS and show what is there.

A new section is one function with @section in front, at its place among the others; its note says
what it shows.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qdeploy.record import Agreement, Complexity, Kernel, LayerWork, Record, ShippedLayer
from qdeploy.report.charts import bars, histogram
from qdeploy.report.curves import run_curves
from qdeploy.report.links import links
from qdeploy.report.processors import processors
from qdeploy.report.section import Chart, Section
from qdeploy.report.summary import sample
from qdeploy.report.words import (
    NOT_MEASURED,
    bits,
    capitalized,
    decibel,
    exact,
    figure,
    kernels,
    milliseconds,
    percent,
    plural,
    provider,
    significant,
    size,
    times,
)

SECTIONS: list[Callable[[Record], Section]] = []


def section(make: Callable[[Record], Section]) -> Callable[[Record], Section]:
    """Puts a section at the end of the report."""
    SECTIONS.append(make)
    return make


def sections(record: Record) -> Iterator[Section]:
    """Those that this report shows, in order."""
    return (found for make in SECTIONS if (found := make(record)).shown)


@section
def gates(record: Record) -> Section:
    return Section(
        "Gates",
        "Demands on this export; one that fails makes qdeploy export exit with an error.",
        ("Gate", "Limit", "Value", "Result"),
        tuple(
            (g.name, exact(g.limit), exact(g.value), ("failed", "passed")[g.passed])
            for g in record.gates
        ),
        shown=bool(record.gates),
    )


@section
def accuracy(record: Record) -> Section:
    forms = record.accuracy
    networks = {
        "float": forms.float, "prepared": forms.prepared, "trained": forms.trained, "ONNX": forms.onnx,
    }  # fmt: skip
    first, *others = record.scores
    known = [first, *(s for s in others if forms.onnx is None or s.name in forms.onnx)]
    headline = {name: found.get(first.name) if found else None for name, found in networks.items()}
    tested = plural(record.dataset.test_samples, f"test {sample(record)}")
    return Section(
        "Accuracy",
        f"On the {tested} of {record.dataset.title}. Prepared is the "
        "network that trained, with biases in float; trained is its integers in PyTorch.",
        ("Network", *(capitalized(score.title) for score in known)),
        tuple(
            (name, *(figure(score, found) for score in known)) for name, found in networks.items()
        ),
        charts=lambda: _bars(headline, first.text, "ONNX"),
        beside=True,
    )


@section
def sizes(record: Record) -> Section:
    found = record.size
    files = {"float32": found.float, "int8": found.int8, "exported": found.onnx}
    rows = {f"{form} ONNX": count for form, count in files.items()}
    return Section(
        "Size",
        "The bound is log2(levels in use) x weights / 8 and 4 bytes for each scale, bias and float weight.",
        ("Form", "Size", "Bytes", "Against the export"),
        tuple(
            (form, NOT_MEASURED, "", "")
            if count is None
            else (form, size(count), f"{count:,}", times(count / found.onnx))
            for form, count in (rows | {"theoretical bound": found.bound}).items()
        ),
        charts=lambda: _bars(files | {"bound": found.bound}, size, "exported"),
        beside=True,
    )


def _bars(
    values: Mapping[str, float | None], words: Callable[[Any], str], accent: str
) -> list[Chart]:
    """One chart of what was measured."""
    known = {name: value for name, value in values.items() if value is not None}
    return [Chart(bars(known, list(map(words, known.values())), accent))] if known else []


@section
def agreement(record: Record) -> Section:
    found = record.agreement
    tested = "float network" if record.method == "float" else "integers"
    decides = "value" if found is None else found.decides or "value"
    rows = () if found is None else ((
        f"{capitalized(decides)}s", f"{found.samples:,}", *_decisions(found), decibel(found.sqnr),
        significant(found.largest), significant(found.mean),
    ),)  # fmt: skip
    unchecked = (
        " The network that trained was not compared with the float one (quantize.check = false)."
    )
    return Section(
        "Agreement",
        f"The ONNX file against the {tested} in PyTorch, which training tested."
        + (unchecked if record.checked is False else ""),
        (
            "",
            "Inputs",
            "In another class",
            "Agreement",
            "SQNR",
            "Largest difference",
            "Mean difference",
        ),
        rows,
    )


def _decisions(found: Agreement) -> tuple[str, str]:
    """How many are others, and the share that is the same; of values neither."""
    if found.share is None:
        return "", ""
    count = found.samples if found.decided is None else found.decided
    return f"{round((1 - found.share) * count):,}", percent(found.share)


@section
def proof(record: Record) -> Section:
    return Section(
        "Proof",
        "From the float network to the file, link by link.",
        ("Link", "Compared", "Found"),
        tuple(links(record)),
        words=True,
    )


@section
def open_sizes(record: Record) -> Section:
    return Section(
        "Sizes",
        "The file takes any size; it was compared with the integers in PyTorch at these, of which the "
        "first is training's.",
        ("Size", "Inputs", "Codes", "Differ", "Largest difference of an output"),
        tuple(
            (
                one.size,
                f"{one.inputs:,}",
                NOT_MEASURED if one.codes is None else f"{one.codes:,}",
                NOT_MEASURED if one.differing is None else f"{one.differing:,}",
                significant(one.largest) if one.largest else "none",
            )
            for one in record.sizes
        ),
        shown=bool(record.sizes),
    )


@section
def exactness(record: Record) -> Section:
    found = record.exactness
    return Section(
        "Exactness",
        "Each tensor of codes in the file against that of the integers in PyTorch, for itself.",
        ("Tensor", "Made by", "Codes", "Differ", "By at most"),
        tuple(
            (
                tensor.name,
                "integer kernels" if tensor.integer else "float operators",
                f"{tensor.elements:,}",
                f"{tensor.differing:,}",
                plural(tensor.max_steps, "step"),
            )
            for tensor in (found.tensors if found is not None else ())
        ),
        folds="tensors",
        shown=found is not None,
    )


@section
def training(record: Record) -> Section:
    last = record.training[-1] if record.training else {}
    return Section(
        "Training",
        "The last epoch; report.html has the curves.",
        tuple(last) or ("epoch",),
        (tuple(map(exact, last.values())),) if last else (),
        charts=lambda: [
            Chart(drawn, name) for name, drawn in run_curves(record.training, record.scores).items()
        ],
        layout="pair",
    )


@section
def latency(record: Record) -> Section:
    copying = any(row.copied_ms is not None for row in record.latency)
    data = f", data {record.latency[0].data}" if record.latency else ""
    return Section(
        "Latency",
        f"Files were run in turns, from inputs to outputs{data}; speed is against the first, by medians.",
        ("File", "Batch", "Provider", "Threads", "Load", "p50", "p90", "p99", "Images/s", "Speed")
        + ("p50 with copies",) * copying,
        tuple(
            (
                row.file,
                str(row.batch),
                provider(row.provider),
                str(row.threads),
                *map(milliseconds, (row.load_ms, row.p50_ms, row.p90_ms, row.p99_ms)),
                significant(row.images_per_second),
                times(row.speedup),
                *(milliseconds(row.copied_ms),) * copying,
            )
            for row in record.latency
        ),
    )


@section
def operators(record: Record) -> Section:
    return Section(
        "Operators",
        "Of the graph that ONNX Runtime runs after its optimisations.",
        ("File", "Integer kernels", "Float kernels", "All operators"),
        tuple(
            (p.file, kernels(p.integer_kernels), kernels(p.float_kernels), kernels(p.operators))
            if p.operators is not None
            else (p.file, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED)
            for p in record.placements
        ),
        words=True,
    )


@section
def coverage(record: Record) -> Section:
    placed = record.placement
    odd = [product for product in (placed.products if placed else ()) if product.reason]
    return Section(
        "Coverage",
        "Convolutions, matrix products and recurrent layers that ran otherwise than the file says.",
        ("Layer", "Operator", "Kernel", "Reason"),
        tuple((p.layer, p.operator, p.kernel or "", p.reason or "") for p in odd),
        words=True,
        shown=bool(odd),
    )


@section
def ran(record: Record) -> Section:
    placed = record.placement
    return Section(
        "Kernels",
        "What ONNX Runtime ran for the exported file, in order, with the types of its first input and "
        "output; times are medians over its runs.",
        KERNEL_COLUMNS,
        tuple(map(kernel_row, placed.kernels if placed else ())),
        folds="kernels",
    )


KERNEL_COLUMNS = ("Layer", "Kernel", "Provider", "From", "To", "Time", "Share")


def kernel_row(kernel: Kernel) -> tuple[str, ...]:
    """The cells below KERNEL_COLUMNS."""
    return (
        kernel.layer or "(added at load)", kernel.operator, provider(kernel.provider),
        kernel.reads, kernel.writes, milliseconds(kernel.ms), percent(kernel.share),
    )  # fmt: skip


@section
def complexity(record: Record) -> Section:
    found = record.complexity
    layers = sum(row.layers for row in found.by_bits)
    rows = (
        (
            bits(row.weight_bits),
            bits(row.act_bits),
            f"{row.layers:,}",
            f"{row.macs:,}",
            percent(row.macs / found.macs),
            f"{row.bit_operations:,}",
        )
        for row in found.by_bits
    )
    return Section(
        "Complexity",
        "For one input. A MAC is one product of a convolution, Linear layer or matrix product; bit "
        "operations are MACs x weight bits x activation bits, 32 for float.",
        ("Weights", "Activations", "Layers", "MACs", "Share", "Bit operations"),
        (*rows, ("all", "", f"{layers:,}", f"{found.macs:,}", "", f"{found.bit_operations:,}")),
    )


PROVEN = (
    "Each tensor is compared for itself, with the integers in PyTorch that training tested. What "
    "integer kernels made is proven where none differs; what float operators made is close."
)


@section
def codes(record: Record) -> Section:
    coded = [layer for layer in record.layers if layer.levels]
    return Section(
        "Codes",
        "How many weights of each layer hold each integer.",
        charts=lambda: list(map(_histogram, coded)),
        layout="histograms",
        shown=bool(coded),
    )


def _histogram(layer: ShippedLayer) -> Chart:
    caption = f"{layer.kind}, {layer.weight_bits} bit, {layer.weights:,} weights"
    return Chart(histogram(layer), layer.name, caption)


@section
def complexity_by_layer(record: Record) -> Section:
    rows = (
        (row.name, row.kind, bits(row.weight_bits), bits(row.act_bits), *_work(row))
        for row in record.complexity.layers
    )
    return Section(
        "Complexity by layer",
        "Parameters are those of the float layer and of the BatchNorm joined with it.",
        ("Layer", "Kind", "Weights", "Activations", "Parameters", "MACs", "Bit operations"),
        (*rows, ("all", "", "", "", *_work(record.complexity))),
    )


def _work(part: LayerWork | Complexity) -> tuple[str, ...]:
    return f"{part.parameters:,}", f"{part.macs:,}", f"{part.bit_operations:,}"


@section
def layers(record: Record) -> Section:
    return Section(
        "Layers",
        "Bytes of codes, scales and biases in the file, and the least that their bits take.",
        ("Layer", "Kind", "Weights", "Activations", "Count", "Levels", "Bytes", "Bound"),
        tuple(
            (
                layer.name,
                layer.kind,
                bits(layer.weight_bits),
                bits(layer.act_bits),
                f"{layer.weights:,}",
                str(len(layer.levels) or ""),
                f"{layer.weight_bytes:,}",
                f"{layer.bound_bytes:,}",
            )
            for layer in record.layers
        ),
    )


@section
def quantization(record: Record) -> Section:
    return Section(
        "Quantization",
        "Every setting that was in force.",
        text=record.settings,
        appendix=("The recipe", json.dumps(record.recipe, indent=2)) if record.recipe else None,
    )


@section
def other_processors(record: Record) -> Section:
    return Section(
        "Processors",
        "What the file gives elsewhere.",
        ("Processor", "What it gives"),
        tuple(processors(record)),
        words=True,
    )


@section
def machine(record: Record) -> Section:
    m, runs_on = record.machine, record.delivery.runs_on
    return Section(
        "Machine",
        "Where the exported file was measured.",
        ("Part", "What it is"),
        (
            ("CPU", f"{m.cpu}, {m.cores} logical cores"),
            ("GPU", m.gpu or "none"),
            ("System", m.system),
            ("Software", f"Python {m.python}, ONNX Runtime {m.onnxruntime}"),
            ("Target", f"{record.delivery.target}; input {record.delivery.input}"),
            *([("Runs on", runs_on)] if runs_on else []),
            ("qdeploy", f"{record.version}, {record.created}"),
        ),
        words=True,
    )
