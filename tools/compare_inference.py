"""Latency of one network under several runtimes, in float and in int8, measured in turns.

    python tools/compare_inference.py results/inference.json

Weights are random and ranges come from noise: this is about speed alone. OpenVINO and NNCF take
part if they can be imported (pip install openvino nncf); what did not take part is in the results.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from contenders import Contender, measure, onnxruntime, openvino, torch_compile, torch_eager

from qdeploy.benchmark import placement, this_machine

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """What is measured: `reference` as in a recipe, images of `size` x `size`, `batches` of them."""

    reference: str
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 224
    batches: tuple[int, ...] = (1, 8)


IMAGENET = {"num_classes": 1000, "stem": "imagenet"}
NETWORKS = {
    "resnet18": Network("resnet18", IMAGENET),
    "resnet50": Network("resnet50", IMAGENET),
    "mobilenet_v2": Network("mobilenet_v2"),
    "mobilenet_v3_small": Network("mobilenet_v3_small"),
    "efficientnet_b0": Network("efficientnet_b0"),
    "vit_b16": Network("vit_b16", batches=(1,)),
    "resnet20": Network("resnet20", size=32, batches=(1, 64)),
}
Maker = Callable[[str, Path], dict[str, float]]  # to the seconds that its steps took
CALIBRATION = (4, 8)  # batches, images in each
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "torch", "openvino", "nncf", "brevitas")


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--network", "networks", type=click.Choice(list(NETWORKS)), multiple=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option(
    "--turns", default=8, show_default=True, help="Of each contender, 0.3 s or more each."
)
def main(
    results: Path,
    networks: tuple[str, ...],
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
            for batch in NETWORKS[network].batches:
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


def absent(packages: Sequence[str] = ("openvino", "nncf")) -> dict[str, str]:
    """{package: why its contenders are missing}."""
    return {name: "not installed" for name in packages if importlib.util.find_spec(name) is None}


def compared(
    network: str, folder: Path, batch: int, threads: int, turns: int
) -> list[dict[str, Any]]:
    """A row for each contender; speed is against the float network on ONNX Runtime."""
    size = NETWORKS[network].size
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
        found.append(Contender("OpenVINO int8, qdeploy", openvino, str(folder / "openvino.onnx")))
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
    makers: list[Maker] = [float_file, int8_file, static_file]
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


def _measured(maker: Maker, network: str, folder: Path) -> tuple[dict[str, float], float]:
    seconds = maker(network, folder)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class Watch:
    """Seconds by step: each call ends the step that it names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self._start = now - self._start, now


def float_file(network: str, folder: Path) -> dict[str, float]:
    """float.onnx."""
    import qdeploy

    model, batches, ended = float_network(network), calibration(network), Watch()
    qdeploy.export(model, folder / "float.onnx", batches[0])
    ended("export")
    return ended.seconds


def int8_file(network: str, folder: Path) -> dict[str, float]:
    """int8.onnx and, with OpenVINO, openvino.onnx: prepare, calibrate, export for each target."""
    import qdeploy

    model, batches, ended = float_network(network), calibration(network), Watch()
    prepared = qdeploy.prepare(model, batches[0], "simqat")
    ended("prepare")
    qdeploy.calibrate(prepared, batches, batch_norm=True)
    ended("calibrate")
    qdeploy.export(prepared, folder / "int8.onnx", batches[0])
    ended("export")
    if "openvino" not in absent():  # export runs the file in it
        qdeploy.export(prepared, folder / "openvino.onnx", batches[0], target="openvino")
        ended("export for OpenVINO")
    return ended.seconds


def float_network(network: str) -> nn.Module:
    """The network with random weights, in evaluation, its BatchNorms set on noise."""
    import torch

    import qdeploy

    torch.manual_seed(0)
    known = NETWORKS[network]
    model = qdeploy.load_network(known.reference, known.options).train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean
    with torch.no_grad():
        model(calibration(network)[0])
    return model.eval()


def calibration(network: str) -> list[Any]:
    """Batches of noise, float32 [N, 3, H, W]."""
    import torch

    size = NETWORKS[network].size
    count, images = CALIBRATION
    return list(torch.randn(count, images, 3, size, size, generator=torch.manual_seed(1)))


def static_file(network: str, folder: Path) -> dict[str, float]:
    """static.onnx: what ONNX Runtime's own tool makes of float.onnx."""
    from static_quantization import quantized_statically

    ended = Watch()
    batches = [[batch.numpy()] for batch in calibration(network)]
    quantized_statically(folder / "float.onnx", folder / "static.onnx", batches)
    ended("quantize")
    return ended.seconds


def nncf_file(network: str, folder: Path) -> dict[str, float]:
    """nncf.xml: what NNCF makes of float.onnx for OpenVINO."""
    import nncf
    import openvino as ov

    ended = Watch()
    model = ov.Core().read_model(folder / "float.onnx")
    images = [image[None].numpy() for batch in calibration(network) for image in batch]
    size = NETWORKS[network].size
    model.reshape([1, 3, size, size])
    quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    quantized.reshape([-1, 3, size, size])
    ov.save_model(quantized, folder / "nncf.xml")
    ended("quantize")
    return ended.seconds


if __name__ == "__main__":
    main()
