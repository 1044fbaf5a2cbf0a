"""Float, int8 and 1-bit files of one zoo network, timed in turns.

    python tools/latency.py results/latency.json

Weights are random and activation ranges come from noise: this is about speed and size alone.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

import qdeploy
from qdeploy.benchmark import benchmark_files

FORMS: dict[str, dict[str, Any]] = {
    "int8": {"method": "simqat"},
    "w1a8": {"method": "slb", "weight_bits": 1},
}


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--network", default="resnet18")
@click.option("--options", default='{"num_classes": 1000, "stem": "imagenet"}', help="JSON.")
@click.option("--shape", type=int, nargs=3, default=(3, 224, 224), show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--batch-size", "batch_sizes", multiple=True, default=(1,), show_default=True)
@click.option("--provider", default="auto", show_default=True)
def main(
    results: Path,
    network: str,
    options: str,
    shape: tuple[int, int, int],
    threads: int,
    batch_sizes: tuple[int, ...],
    provider: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files, seconds = exported(network, json.loads(options), shape, Path(folder))
        measured = benchmark_files(files, provider, threads, batch_sizes)
    results.parent.mkdir(parents=True, exist_ok=True)
    content = {"network": network, "input": shape, "export_seconds": seconds, **asdict(measured)}
    results.write_text(json.dumps(content, indent=1) + "\n")
    for row in measured.latency:
        click.echo(f"{row.file}: {row.file_bytes:,} bytes, {row.p50_ms:.2f} ms, {row.speedup:.2f}x")


def exported(
    network: str, options: dict[str, Any], shape: tuple[int, int, int], folder: Path
) -> tuple[list[Path], dict[str, float]]:
    """The files, float first, and how long each took to prepare, convert and export."""
    torch.manual_seed(0)
    model = qdeploy.load_network(network, options)
    images = torch.randn(2, *shape)
    files, seconds = [folder / "float.onnx"], {}
    qdeploy.export(model, files[0], images)
    for name, settings in FORMS.items():
        start = time.perf_counter()
        prepared = qdeploy.prepare(model, images, **settings)
        qdeploy.calibrate(prepared, [images], batch_norm=True)
        files.append(qdeploy.export(prepared, folder / f"{name}.onnx", images))
        seconds[name] = time.perf_counter() - start
    return files, seconds


if __name__ == "__main__":
    main()
