"""The few figures that a reader looks for first; terminal, Markdown and HTML show the same."""

from dataclasses import dataclass

from qdeploy.record import (
    FLOAT_BITS,
    Agreement,
    Complexity,
    Exactness,
    Placement,
    ProvenSize,
    Record,
    Sizes,
)
from qdeploy.report.words import (
    NOT_MEASURED,
    decibel,
    figure,
    kernels,
    milliseconds,
    percent,
    plural,
    provider,
    quantity,
    significant,
    size,
    times,
)


@dataclass(frozen=True)
class Headline:
    """One figure: a short value, and the note that lets a reader judge it."""

    label: str
    value: str
    note: str


def headlines(record: Record) -> tuple[Headline, ...]:
    """Accuracy, agreement, size, work, speed, kernels and coverage of the exported file."""
    return (
        _accuracy(record),
        _agreement(record),
        *_exact(record.exactness),
        *_sizes(record.sizes),
        _size(record.size),
        _macs(record.complexity),
        _speed(record),
        _kernels(record),
        _coverage(record),
    )


def sample(record: Record) -> str:
    """What one input is called."""
    return "image" if record.task in ("classification", "segmentation") else "sample"


def computing(placed: Placement) -> str:
    """What computes in integers and what in float: "integer: 20 QLinearConv; float: none"."""
    if placed.operators is None:
        return NOT_MEASURED
    return f"integer: {kernels(placed.integer_kernels)}; float: {kernels(placed.float_kernels)}"


def covered(placed: Placement) -> str:
    """How many quantized products ran in integers: "20 of 21 quantized products ran in integers"."""
    found = placed.coverage
    if found is None:
        return NOT_MEASURED
    if not found.quantized:
        return "none of its products is quantized"
    return f"{found.integer} of {plural(found.quantized, 'quantized product')} ran in integers"


def exceptions(placed: Placement) -> tuple[str, ...]:
    """A line for each reason why products ran otherwise than the file says, with their names."""
    reasons: dict[str, list[str]] = {}
    for product in placed.products:
        if product.reason is not None:
            reasons.setdefault(product.reason, []).append(product.layer)
    return tuple(f"{', '.join(layers)}: {reason}" for reason, layers in reasons.items())


def _accuracy(record: Record) -> Headline:
    accuracy, score = record.accuracy, record.headline
    shown = {"trained": accuracy.trained, "float": accuracy.float}
    others = ", ".join(f"{name} {figure(score, found)}" for name, found in shown.items())
    tested = plural(record.dataset.test_samples, f"test {sample(record)}")
    return Headline(
        "Accuracy", figure(score, accuracy.onnx), f"{score.title} of the file; {others}; {tested}"
    )


def _agreement(record: Record) -> Headline:
    found = record.agreement
    if found is None:
        return Headline("Agreement", NOT_MEASURED, "with the integers in PyTorch")
    if found.share is None:
        return Headline(
            "Agreement", decibel(found.sqnr), f"with the integers in PyTorch; {apart(found)}"
        )
    return Headline(
        "Agreement", percent(found.share), f"{decided(found)} as in training; {apart(found)}"
    )


def decided(found: Agreement) -> str:
    """As "of 1,797 images in the same class"."""
    count = found.samples if found.decided is None else found.decided
    return f"of {plural(count, found.decides or 'value')} in the same class"


def apart(found: Agreement) -> str:
    """How far outputs are from each other: "largest difference 0.0012, mean 0.0001"."""
    return f"largest difference {significant(found.largest)}, mean {significant(found.mean)}"


def _exact(found: Exactness | None) -> tuple[Headline, ...]:
    if found is None or not found.tensors:
        return ()
    number, _, rest = str(found).partition(" ")
    return (Headline("Exact", number, rest),)


def _sizes(proven: tuple[ProvenSize, ...]) -> tuple[Headline, ...]:
    if not proven:
        return ()
    sizes = ", ".join(one.size for one in proven)
    note = f"compared with the integers in PyTorch: {sizes}; the file takes others as well"
    return (Headline("Sizes", str(len(proven)), note),)


def _size(sizes: Sizes) -> Headline:
    against = "float not measured"
    if sizes.float is not None:
        against = f"{_smaller(sizes.onnx, sizes.float)} than float ({size(sizes.float)})"
    bound = "bound not measured"
    if sizes.bound:
        bound = f"{times(sizes.onnx / sizes.bound)} the bound of {size(sizes.bound)}"
    return Headline("Size", size(sizes.onnx), f"{against}; {bound}")


def _macs(found: Complexity) -> Headline:
    value = quantity(found.macs)
    if not found.by_bits:
        return Headline("MACs", value, "for one input")
    most = max(found.by_bits, key=lambda row: row.macs)
    widths = f"{most.weight_bits or FLOAT_BITS} x {most.act_bits or FLOAT_BITS} bits"
    note = f"{percent(most.macs / found.macs)} at {widths}"
    fewer = FLOAT_BITS**2 * found.macs / found.bit_operations
    if fewer > 1:
        note += f"; {times(fewer)} fewer bit operations"
    return Headline("MACs", value, note)


def _speed(record: Record) -> Headline:
    if not record.timings:
        return Headline("Latency", NOT_MEASURED, "measure it with qdeploy benchmark")
    row = record.timings[0]
    first = record.latency[0]
    against = ""
    if first is not row:
        reference = f"{first.file} ({milliseconds(first.p50_ms)})"
        against = f"{times(row.speedup)} as fast as {reference}; "
    setting = f"batch {row.batch}, {plural(row.threads, 'thread')} on {provider(row.provider)}"
    return Headline("Latency", milliseconds(row.p50_ms), f"{against}{setting}")


def _kernels(record: Record) -> Headline:
    placed = record.placement
    if placed is None or placed.operators is None:
        return Headline("Kernels", NOT_MEASURED, "operators that ONNX Runtime runs")
    ran = ", ".join(map(provider, placed.ran_on))
    return Headline(
        "Kernels",
        f"{sum(placed.integer_kernels.values())} integer",
        f"{computing(placed)}; provider: {ran}",
    )


def _coverage(record: Record) -> Headline:
    placed = record.placement
    found = None if placed is None else placed.coverage
    if placed is None or found is None:
        return Headline("Coverage", NOT_MEASURED, "quantized products that ran in integers")
    value = percent(found.integer / found.quantized) if found.quantized else "none"
    return Headline("Coverage", value, "; ".join((covered(placed), *exceptions(placed))))


def _smaller(one: int, other: int) -> str:
    return f"{times(other / one)} smaller" if one <= other else f"{times(one / other)} larger"
