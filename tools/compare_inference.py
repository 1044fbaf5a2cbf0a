"""Latency of one network under several runtimes, in float and in int8, measured in turns.

    python tools/compare_inference.py results/inference.json

Weights are random and ranges come from noise: this is about speed alone. OpenVINO and NNCF take
part if they can be imported (pip install openvino nncf); what did not take part is in the results.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from contenders import Contender, measure, onnxruntime, openvino, torch_compile, torch_eager

from qdeploy.benchmark import placement, this_machine

if TYPE_CHECKING:
    from torch import nn

IMAGENET = {"num_classes": 1000, "stem": "imagenet"}
HERE = Path(__file__).parent
# name -> the network, its options, the size of its images
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet18": ("resnet18", IMAGENET, 224),
    "resnet50": ("resnet50", IMAGENET, 224),
    "mobilenet_v2": (f"{HERE / 'imagenet_networks.py'}:mobilenet_v2", {}, 224),
    "efficientnet_b0": (f"{HERE / 'imagenet_networks.py'}:efficientnet_b0", {}, 224),
    "resnet20": ("resnet20", {}, 32),
}
CALIBRATION = (4, 8)  # batches, images in each
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "torch", "openvino", "nncf")


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--network", "networks", type=click.Choice(list(NETWORKS)), multiple=True)
@click.option("--batch-size", "batches", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option(
    "--turns", default=8, show_default=True, help="Of each contender, 0.3 s or more each."
)
def main(
    results: Path,
    networks: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    turns: int,
) -> None:
    content: dict[str, Any] = {
        "machine": asdict(this_machine()),
        "versions": dict(versions()),
        "skipped": absent(),
        "files": [],
        "latency": [],
    }
    for network in networks or NETWORKS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            content["files"].append({"network": network, **make_files(network, folder)})
            for batch in batches:
                for count in threads:
                    rows = compared(network, folder, batch, count, turns)
                    content["latency"] += rows
                    click.echo(f"{network}, batch {batch}, {count} thread(s): {told(rows)}")
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(content, indent=1) + "\n")


def versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def absent() -> dict[str, str]:
    """{package: why its contenders are missing}."""
    return {
        name: "not installed"
        for name in ("openvino", "nncf")
        if importlib.util.find_spec(name) is None
    }


def compared(
    network: str, folder: Path, batch: int, threads: int, turns: int
) -> list[dict[str, Any]]:
    """A row for each contender; speed is against the float network on ONNX Runtime."""
    size = NETWORKS[network][2]
    times = measure(contenders(network, folder), (batch, 3, size, size), threads, turns)
    medians = {
        name: statistics.median(found) for name, found in times.items() if isinstance(found, list)
    }
    setting = {"network": network, "batch": batch, "threads": threads}
    rows = []
    for name, found in times.items():
        row = setting | {
            "contender": name,
            "p50_ms": None,
            "speed": None,
            "runs": 0,
            "failure": None,
        }
        if isinstance(found, str):
            row["failure"] = found
        else:
            speed = medians["ORT float"] / medians[name]
            row |= {"p50_ms": medians[name], "speed": speed, "runs": len(found)}
        rows.append(row)
    return rows


def contenders(network: str, folder: Path) -> list[Contender]:
    """Float first; those whose package is missing are left out."""
    found = [
        Contender("ORT float", onnxruntime, str(folder / "float.onnx")),
        Contender("ORT int8, qdeploy", onnxruntime, str(folder / "int8.onnx")),
        Contender("ORT int8, quantize_static", onnxruntime, str(folder / "static.onnx")),
        Contender("torch eager", torch_eager, network),
        Contender("torch.compile", torch_compile, network),
    ]
    if "openvino" not in absent():
        found.append(Contender("OpenVINO int8, qdeploy", openvino, str(folder / "int8.onnx")))
    if not absent():
        found.append(Contender("OpenVINO int8, NNCF", openvino, str(folder / "nncf.xml")))
    return found


def told(rows: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{row['contender']} {row['p50_ms']:.2f} ms"
        if row["p50_ms"]
        else f"{row['contender']} failed"
        for row in rows
    )


def make_files(network: str, folder: Path) -> dict[str, Any]:
    """Writes every file; what that took, and what ONNX Runtime makes of the int8 ones."""
    makers: list[Callable[[str, Path], None]] = [float_file, int8_file, static_file]
    if not absent():
        makers.append(nncf_file)
    spent = {}
    for maker in makers:
        # A process of its own each, so that its peak of memory is its own.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            seconds, peak = pool.submit(_measured, maker, network, folder).result()
        spent[maker.__name__] = {"seconds": seconds, "peak_mb": peak}
    placed = [placement(folder / file, "cpu") for file in ("int8.onnx", "static.onnx")]
    return {
        "made": spent,
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "coverage": {
            found.file: asdict(found.coverage) if found.coverage else None for found in placed
        },
        "exceptions": {
            found.file: [asdict(p) for p in found.products if p.reason] for found in placed
        },
    }


def _measured(
    maker: Callable[[str, Path], None], network: str, folder: Path
) -> tuple[float, float]:
    start = time.perf_counter()
    maker(network, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return time.perf_counter() - start, peak


def float_file(network: str, folder: Path) -> None:
    """float.onnx."""
    import qdeploy

    qdeploy.export(float_network(network), folder / "float.onnx", calibration(network)[0])


def int8_file(network: str, folder: Path) -> None:
    """int8.onnx: prepare, calibrate, export."""
    import qdeploy

    batches = calibration(network)
    prepared = qdeploy.prepare(float_network(network), batches[0], "simqat")
    qdeploy.calibrate(prepared, batches)
    qdeploy.export(prepared, folder / "int8.onnx", batches[0])


def float_network(network: str) -> nn.Module:
    """The network with random weights, in evaluation, its BatchNorms set on noise."""
    import torch

    import qdeploy

    torch.manual_seed(0)
    reference, options, _ = NETWORKS[network]
    model = qdeploy.load_network(reference, options).train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean
    with torch.no_grad():
        model(calibration(network)[0])
    return model.eval()


def calibration(network: str) -> list[Any]:
    """Batches of noise, float32 [N, 3, H, W]."""
    import torch

    size = NETWORKS[network][2]
    count, images = CALIBRATION
    return list(torch.randn(count, images, 3, size, size, generator=torch.manual_seed(1)))


def static_file(network: str, folder: Path) -> None:
    """static.onnx: what ONNX Runtime's own tool makes of float.onnx, as its manual says."""
    from onnxruntime import quantization as static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    feeds = iter([{"input": batch.numpy()} for batch in calibration(network)])

    class Reader(static.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(feeds, None)

    ready = folder / "ready.onnx"
    quant_pre_process(folder / "float.onnx", ready, skip_symbolic_shape=True)
    static.quantize_static(
        ready,
        folder / "static.onnx",
        Reader(),
        quant_format=static.QuantFormat.QDQ,
        per_channel=True,
        activation_type=static.QuantType.QUInt8,
        weight_type=static.QuantType.QInt8,
    )
    ready.unlink()


def nncf_file(network: str, folder: Path) -> None:
    """nncf.xml: what NNCF makes of float.onnx for OpenVINO."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(folder / "float.onnx")
    images = [image[None].numpy() for batch in calibration(network) for image in batch]
    size = NETWORKS[network][2]
    model.reshape([1, 3, size, size])
    quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    quantized.reshape([-1, 3, size, size])
    ov.save_model(quantized, folder / "nncf.xml")


if __name__ == "__main__":
    main()
