"""What `qdeploy inspect` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from qdeploy.deploy.contents import Contents, FileLayer, Port, Quantized
from qdeploy.deploy.repack import Repacked
from qdeploy.deploy.seal import NETWORK, Seal
from qdeploy.report.processors import saturating
from qdeploy.report.words import plural, significant, size, times

SEALS = {
    Seal.WHOLE: "whole: its SHA-256 is the one written in it",
    Seal.METADATA: "weights and graph whole, METADATA CHANGED since qdeploy wrote it",
    Seal.CHANGED: "CHANGED since qdeploy wrote it: weights or graph, or both",
    Seal.LOST: "LOST: qdeploy wrote this file, and a tool dropped its hash; nothing can be said of what else "
    "the tool did",
    Seal.NONE: "no hash in the file",
}
UNKNOWN = "not known"


def repacked_text(packed: Repacked) -> str:
    """What `qdeploy pack` says of a file."""
    if not packed.weights:
        return f"{packed.file}: no weight takes fewer bytes packed; nothing was written"
    lines = [
        f"{packed.file}: {packed.before:,} -> {packed.after:,} bytes, "
        f"{times(packed.before / packed.after)} smaller; "
        f"packed: {plural(packed.weights, 'weight')}, each of them unpacked to its codes again"
    ]
    if packed.seal is Seal.WHOLE:
        lines.append("sealed anew")
    elif packed.seal is not Seal.NONE:
        lines.append(f"not sealed anew; what inspect says of it stays: {SEALS[packed.seal]}")
    for file in packed.unread:
        lines.append(f"{file} is read no longer: the weights are in {packed.file.name}")
    return "\n".join(lines)


def contents_json(contents: Contents) -> str:
    return json.dumps({**asdict(contents), "intact": contents.intact}, indent=2)


def contents_tables(contents: Contents) -> Group:
    """The file, then a row for each layer; print it with rich."""
    facts = Table(box=box.HORIZONTALS, show_header=False, title_justify="left", title_style="bold")
    facts.title = Text(contents.file)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _facts(contents):
        facts.add_row(name, Text(value))
    layers = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    layers.add_column("layer", overflow="fold")
    layers.add_column("weight", overflow="fold")
    for name in ("bits", "scales", "stored", "bytes", "reads", "bits", "scale"):
        layers.add_column(name, justify="right")
    for layer in contents.layers:
        layers.add_row(*map(Text, _row(layer)))
    return Group(facts, layers)


def _facts(contents: Contents) -> Iterator[tuple[str, str]]:
    rest = contents.bytes - contents.weight_bytes - contents.metadata_bytes
    domains = ", ".join(f"{name} {version}" for name, version in contents.opset.items())
    yield "Seal", _seal(contents)
    yield "Made by", contents.producer or UNKNOWN
    yield (
        "Size",
        f"{size(contents.bytes)}: constants {contents.weight_bytes:,}, metadata "
        f"{contents.metadata_bytes:,}, graph {rest:,} bytes",
    )
    if contents.saving > 0:
        yield "Packing", _unpacked(contents)
    yield "Format", f"opset {domains}, IR {contents.ir_version}"
    if contents.runs_on:
        yield "Runs on", contents.runs_on
    yield "Input", ", ".join(map(_port, contents.inputs))
    yield "Output", ", ".join(map(_port, contents.outputs))
    saturation = contents.saturation(contents.file)
    if saturation.quantized:
        layers = f": {', '.join(saturation.layers)}" if saturation.layers else ""
        yield "Processors", f"{saturating(saturation)}{layers}"
    yield "Recipe", _flat(contents.recipe) or UNKNOWN
    yield "Origin", _flat(contents.origin) or UNKNOWN
    if "qdeploy.proof" in contents.metadata:
        yield "Proof", _proof(contents.metadata["qdeploy.proof"])
    for name in ("colours", "crop", "interpolation", "normalisation", "classes"):
        if f"qdeploy.{name}" in contents.metadata:
            yield name.capitalize(), contents.metadata[f"qdeploy.{name}"]
    foreign = sorted(key for key in contents.metadata if not key.startswith("qdeploy."))
    if foreign:
        yield "Other keys", ", ".join(foreign)
    unknown = sorted({layer.unknown for layer in contents.layers if layer.unknown})
    if unknown:
        yield "Not known", "; ".join(unknown)


def _seal(contents: Contents) -> str:
    text = SEALS[contents.seal]
    if contents.seal is Seal.METADATA:
        added = ", ".join(contents.added)
        text += f": added {added}" if added else "; which entry cannot be told"
    if contents.seal is Seal.CHANGED and NETWORK not in contents.metadata:
        text += ", or metadata alone"
    return text


def _unpacked(contents: Contents) -> str:
    packed = contents.bytes - contents.saving
    was = "was unpacked" if contents.seal in (Seal.CHANGED, Seal.LOST) else "not packed"
    text = (
        f"{was}: {times(contents.bytes / packed)} larger than packed, which is about {size(packed)}; "
        f"`qdeploy pack {shlex.quote(contents.file)}` packs it"
    )
    signed = any(layer.activation and layer.activation.type == "int8" for layer in contents.layers)
    return f"{text}. TensorRT reads it only as it is" if signed else text


def _proof(text: str) -> str:
    """What an export found of its codes, as it wrote it; the text itself if it is of another form."""
    try:
        found = json.loads(text)
        counted = f"{found['differing']:,} of {found['codes']:,} codes differed from training's"
        return f"{counted} over {found['inputs']:,} inputs on {found['processor']}"
    except (ValueError, LookupError, TypeError):
        return text


def _flat(table: dict[str, object], prefix: str = "") -> str:
    """A nested table on one line: name = lenet5, train.epochs = 20."""
    parts = (
        _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key} = {value}"
        for key, value in table.items()
    )
    return ", ".join(filter(None, parts))


def _port(port: Port) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in port.shape)
    return f"{port.name}: {port.type} [{sizes}]"


def _row(layer: FileLayer) -> tuple[str, ...]:
    nothing = UNKNOWN if layer.unknown else "float"
    return (
        layer.name,
        "x".join(map(str, layer.shape)),
        _bits(layer.weight, nothing),
        _scales(layer.weight),
        layer.stored,
        f"{layer.bytes:,}",
        layer.activation.type if layer.activation else nothing,
        _bits(layer.activation, nothing),
        _scales(layer.activation),
    )


def _bits(codes: Quantized | None, nothing: str) -> str:
    return nothing if codes is None else str(codes.bits)


def _scales(codes: Quantized | None) -> str:
    if codes is None or codes.scales is None:
        return ""
    low, high = (significant(scale) if scale else "0" for scale in codes.scales)
    return low if codes.channels == 1 else f"{low} to {high}"
