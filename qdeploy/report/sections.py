"""The tables of the report as plain text cells, for Markdown and HTML alike."""

from dataclasses import dataclass

from qdeploy.record import Accuracy, Complexity, Kernel, LayerWork, Record
from qdeploy.report.summary import exported
from qdeploy.report.words import (
    NOT_MEASURED,
    bits,
    exact,
    kernels,
    milliseconds,
    percent,
    provider,
    significant,
    size,
    times,
)


@dataclass(frozen=True)
class Section:
    """A titled table; no rows means that nothing of it was measured. Later columns are numbers."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def accuracy(record: Record) -> Section:
    """Top-1 and top-5 of the three networks."""

    def row(name: str, found: Accuracy | None) -> tuple[str, ...]:
        return name, percent(found.top1 if found else None), percent(found.top5 if found else None)

    return Section(
        "Accuracy",
        f"On the {record.dataset.test_samples:,} test images of {record.dataset.title}.",
        ("Network", "Top-1", "Top-5"),
        (
            row("float", record.accuracy.float),
            row("trained", record.accuracy.trained),
            row("ONNX", record.accuracy.onnx),
        ),
    )


def agreement(record: Record) -> Section:
    """The exported file against the training network in evaluation mode."""
    found = record.agreement
    return Section(
        "Agreement",
        "The ONNX file against the training network in evaluation mode.",
        ("", "Images", "In another class", "Agreement", "Largest difference", "Mean difference"),
        ()
        if found is None
        else (
            (
                "Logits",
                f"{found.samples:,}",
                f"{round((1 - found.top1) * found.samples):,}",
                percent(found.top1),
                significant(found.max_logit_difference),
                significant(found.mean_logit_difference),
            ),
        ),
    )


def sizes(record: Record) -> Section:
    """Bytes of each form of the network, and how the exported file compares with it."""
    forms = {
        "float32 ONNX": record.size.float,
        "int8 ONNX": record.size.int8,
        "exported ONNX": record.size.onnx,
        "theoretical bound": record.size.bound,
    }
    return Section(
        "Size",
        "The bound is bits x weights / 8 and 4 bytes for each scale, bias and float weight.",
        ("Form", "Size", "Bytes", "Against the export"),
        tuple(_size_row(form, count, record.size.onnx) for form, count in forms.items()),
    )


def _size_row(form: str, count: int | None, exported: int) -> tuple[str, ...]:
    if count is None:
        return form, NOT_MEASURED, "", ""
    return form, size(count), f"{count:,}", times(count / exported)


def latency(record: Record) -> Section:
    """A row for each file and batch size."""
    return Section(
        "Latency",
        "Files were run in turns, from images to logits; speed is against the first, by medians.",
        ("File", "Batch", "Provider", "Threads", "Load", "p50", "p90", "p99", "Images/s", "Speed"),
        tuple(
            (
                row.file,
                str(row.batch),
                provider(row.provider),
                str(row.threads),
                *map(milliseconds, (row.load_ms, row.p50_ms, row.p90_ms, row.p99_ms)),
                significant(row.images_per_second),
                times(row.speedup),
            )
            for row in record.latency
        ),
    )


def operators(record: Record) -> Section:
    """What ONNX Runtime runs after its optimisations, for each file."""
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
    )


def coverage(record: Record) -> Section:
    """A row for each product of the exported file that ran otherwise than the file says."""
    placed = exported(record)
    return Section(
        "Coverage",
        "Convolutions and matrix products that ran otherwise than the file says.",
        ("Layer", "Operator", "Kernel", "Reason"),
        tuple(
            (product.layer, product.operator, product.kernel or "", product.reason)
            for product in (placed.products if placed else ())
            if product.reason is not None
        ),
    )


def ran(record: Record) -> Section:
    """A row for each kernel that ran for the exported file."""
    placed = exported(record)
    return Section(
        "Kernels",
        "What ONNX Runtime ran for the exported file, in order, with the types of its first input and "
        "output; times are medians over its runs.",
        KERNEL_COLUMNS,
        tuple(map(kernel_row, placed.kernels if placed else ())),
    )


KERNEL_COLUMNS = ("Layer", "Kernel", "Provider", "From", "To", "Time", "Share")


def kernel_row(kernel: Kernel) -> tuple[str, ...]:
    """The cells below KERNEL_COLUMNS."""
    return (
        kernel.layer or "(added at load)",
        kernel.operator,
        provider(kernel.provider),
        kernel.reads,
        kernel.writes,
        milliseconds(kernel.ms),
        percent(kernel.share),
    )


def complexity(record: Record) -> Section:
    """A row for each pair of bit widths, and one for all."""
    found = record.complexity
    layers = sum(row.layers for row in found.by_bits)
    return Section(
        "Complexity",
        "For one input. A MAC is one product of a convolution, Linear layer or matrix product; bit "
        "operations are MACs x weight bits x activation bits, 32 for float.",
        ("Weights", "Activations", "Layers", "MACs", "Share", "Bit operations"),
        (
            *(
                (
                    bits(row.weight_bits),
                    bits(row.act_bits),
                    f"{row.layers:,}",
                    f"{row.macs:,}",
                    percent(row.macs / found.macs),
                    f"{row.bit_operations:,}",
                )
                for row in found.by_bits
            ),
            ("all", "", f"{layers:,}", f"{found.macs:,}", "", f"{found.bit_operations:,}"),
        ),
    )


def complexity_by_layer(record: Record) -> Section:
    """A row for each layer that multiplies or has parameters, and one for all."""
    return Section(
        "Complexity by layer",
        "Parameters are those of the float layer and of the BatchNorm joined with it.",
        ("Layer", "Kind", "Weights", "Activations", "Parameters", "MACs", "Bit operations"),
        (
            *(
                (row.name, row.kind, bits(row.weight_bits), bits(row.act_bits), *_work(row))
                for row in record.complexity.layers
            ),
            ("all", "", "", "", *_work(record.complexity)),
        ),
    )


def _work(part: LayerWork | Complexity) -> tuple[str, ...]:
    return f"{part.parameters:,}", f"{part.macs:,}", f"{part.bit_operations:,}"


def layers(record: Record) -> Section:
    """A row for each layer as it ships."""
    return Section(
        "Layers",
        "Bytes of the weights in the file, and the least that their bits, scales and biases take.",
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


def gates(record: Record) -> Section:
    """The demands on this export."""
    return Section(
        "Gates",
        "Demands on this export; one that fails makes qdeploy export exit with an error.",
        ("Gate", "Limit", "Value", "Result"),
        tuple(
            (
                gate.name,
                exact(gate.limit),
                exact(gate.value),
                "passed" if gate.passed else "failed",
            )
            for gate in record.gates
        ),
    )


def machine(record: Record) -> Section:
    """Where the numbers were measured."""
    m = record.machine
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
            ("qdeploy", f"{record.version}, {record.created}"),
        ),
    )
