"""How long ONNX Runtime takes to load a file, and how much memory: packed, with int8 codes, in float.

    python tools/loading.py results/loading.json

Weights are random. Each load is the first of a process of its own, and the files of a network take turns;
they are in the page cache. Memory is what the process grows by: at its peak, and once the file is loaded.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import onnx_ir as ir

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "lenet5": ({}, (1, 28, 28)),
    "mobilenet_v2": ({}, (3, 64, 64)),
    "resnet18": ({"num_classes": 1000, "stem": "imagenet"}, (3, 64, 64)),
    "resnet50": ({"num_classes": 1000, "stem": "imagenet"}, (3, 64, 64)),
}
# The codes that weights take.
LEVELS = {
    "1 bit": [-1, 1],
    "ternary": [-1, 0, 1],
    "2 bits": [-3, -1, 1, 3],
    "3 bits": list(range(-4, 4)),
    "4 bits": list(range(-15, 16, 2)),
}


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--network", "networks", type=click.Choice(list(NETWORKS)), multiple=True)
@click.option("--turns", default=9, show_default=True, help="Loads of each file.")
def main(results: Path, networks: tuple[str, ...], turns: int) -> None:
    from qdeploy.benchmark import this_machine

    content: dict[str, Any] = {"machine": asdict(this_machine()), "turns": turns, "files": []}
    for network in networks or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # leaves no torch behind
                files = pool.submit(make_files, network, Path(folder)).result()
            for row in measured(files, turns):
                content["files"].append({"network": network, **row})
                click.echo(content["files"][-1])
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(content, indent=1) + "\n")


def make_files(network: str, folder: Path) -> dict[str, Path]:
    """{name: file}: "float", "int8", and packed ones by what their weights are."""
    import torch

    import qdeploy
    from qdeploy.deploy.export import finished, to_onnx

    torch.manual_seed(0)
    options, shape = NETWORKS[network]
    model, images = qdeploy.load_network(network, options), torch.randn(2, *shape)
    prepared = qdeploy.prepare(model, images, "simqat", check=False)
    qdeploy.calibrate(prepared, [images], batch_norm=True)
    graph = to_onnx(qdeploy.convert(prepared), images)
    protos = {"int8": finished(graph, False, {})}
    for weights, levels in LEVELS.items():
        take_levels(graph, levels)
        protos[weights] = finished(graph, True, {})
    files = {"float": qdeploy.export(model, folder / "float.onnx", images)}
    for name, proto in protos.items():
        files[name] = folder / f"{name}.onnx"
        files[name].write_bytes(proto.SerializeToString())
    return files


def take_levels(graph: ir.Model, levels: list[int]) -> None:
    """Gives all weights random codes of these levels, in place."""
    import numpy as np
    import onnx_ir as ir

    random = np.random.default_rng(0)
    for value in graph.graph.initializers.values():
        if value.dtype == ir.DataType.INT8 and len(value.shape or ()) > 1:
            codes = random.choice(np.array(levels, np.int8), value.shape.numpy())  # type: ignore[union-attr]
            value.const_value = ir.tensor(codes, name=value.name)


def measured(files: dict[str, Path], turns: int) -> Iterator[dict[str, Any]]:
    """Medians over the turns."""
    loads: dict[str, list[tuple[float, float, float]]] = {name: [] for name in files}
    for _ in range(turns):
        for name, path in files.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                loads[name].append(pool.submit(load, path).result())
    for name, found in loads.items():
        load_ms, peak_mb, resident_mb = map(statistics.median, zip(*found, strict=True))
        row = {"file": name, "bytes": files[name].stat().st_size, "load_ms": load_ms}
        yield row | {"peak_mb": peak_mb, "resident_mb": resident_mb}


def load(path: Path) -> tuple[float, float, float]:
    """CPU milliseconds of a load with one thread, and the MB that memory grows by: at most, and to stay."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = memory("VmRSS"), time.process_time()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load_ms = 1e3 * (time.process_time() - start)
    grown = memory("VmHWM") - before, memory("VmRSS") - before
    del session  # not before memory was read
    return load_ms, *grown


def memory(entry: str) -> float:
    """MB, from what Linux knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024 / 1e6


if __name__ == "__main__":
    main()
