"""Whether files hold the very codes of their integers in PyTorch, and what proving it costs.

    python tools/exactness.py results/exactness.json            # every network at every width
    python tools/exactness.py results/exactness.json --only resnet18    # these anew, the others stay

Weights are random and BatchNorm statistics those of the inputs, which are random as well: exactness
does not ask what a network was trained for. `python tools/tables.py` makes docs/proof.md of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from compare_inference import versions
from torch import Tensor, nn

import qdeploy
from qdeploy.benchmark import this_machine
from qdeploy.deploy.inspect import inspect
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.layers.modes import full_float32

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import families  # type: ignore[import-not-found]

Shape = tuple[int, int, int]

NETWORKS: dict[str, Shape] = {
    "lenet5": (1, 28, 28),
    "resnet20s": (3, 32, 32),
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
    "mobilenet_v2": (3, 64, 64),
    "mobilenet_v3_small": (3, 64, 64),
    "efficientnet_b0": (3, 64, 64),
    "vit_b16": (3, 224, 224),
    "unet": (3, 64, 64),
}
WIDTHS: dict[str, dict[str, Any]] = {
    "W8A8": {"method": "simqat"},
    "W4A4": {"method": "simqat", "weight_bits": 4, "act_bits": 4},
    "W2A2": {"method": "lsq", "weight_bits": 2, "act_bits": 2},
    "W1A8": {"method": "slb", "weight_bits": 1},
    "W1A1": {"method": "dorefa", "weight_bits": 1, "act_bits": 1, "first_last_float": True},
}


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        return families.build("unet")
    return qdeploy.load_network(name, {})


def images_of(name: str, count: int, seed: int) -> Tensor:
    return torch.randn(count, *NETWORKS[name], generator=torch.Generator().manual_seed(seed))


def proven(name: str, width: str, count: int) -> dict[str, Any]:
    """Codes that differ over `count` random images, and how many layers could saturate elsewhere."""
    batch = images_of(name, 8, 1)
    prepared = qdeploy.prepare(network_of(name), batch[:2], **WIDTHS[width])
    prepared.set_progress(9, 10)
    qdeploy.calibrate(prepared, [batch], batch_norm=True)
    with tempfile.TemporaryDirectory() as folder:
        file = qdeploy.export(prepared, Path(folder) / "model.onnx", batch[:2])
        found = qdeploy.validate(prepared, file, images_of(name, count, 2).split(8), "cpu")
        saturation = inspect(file).saturation(name)
    exactness, behind = found.exactness, found.exactness.behind_float
    return {
        "network": name,
        "width": width,
        "images": exactness.samples,
        "codes": exactness.compared,
        "tensors": len(exactness.from_kernels),
        "differing": exactness.differing,
        "behind_float": sum(tensor.elements for tensor in behind),
        "behind_float_differing": sum(tensor.differing for tensor in behind),
        "behind_float_steps": max((tensor.max_steps for tensor in behind), default=0),
        "largest_logit_difference": max(output.largest for output in found.outputs),
        "largest_logit": max(output.size for output in found.outputs),
        "saturating": len(saturation.layers),
        "quantized": saturation.quantized,
    }


def cost(name: str) -> dict[str, Any]:
    """CPU seconds of prepare with its check and without, and of the integers, exact and in plain floats."""
    batch = images_of(name, 8, 1)
    network = network_of(name)
    unchecked = fastest(lambda: qdeploy.prepare(network, batch, "simqat", check=False), 1)
    checked = fastest(lambda: qdeploy.prepare(network, batch, "simqat"), 1)
    prepared = qdeploy.prepare(network, batch, "simqat", check=False)
    qdeploy.calibrate(prepared, [batch], batch_norm=True)
    integers = qdeploy.convert(prepared)
    with torch.inference_mode(), full_float32():
        exact = fastest(lambda: integers(batch), 3)
        # What the exporter sees is the same network in plain floats.
        with patch("torch.compiler.is_exporting", return_value=True):
            plain = fastest(lambda: integers(batch), 3)
    return {
        "network": name, "prepare": unchecked, "prepare_checked": checked,
        "plain": plain, "exact": exact,
    }  # fmt: skip


def fastest(run: Callable[[], object], rounds: int) -> float:
    """CPU seconds, which other work on the machine changes least."""
    run()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def cases(only: str) -> Iterator[tuple[str, str]]:
    return ((n, w) for n in NETWORKS for w in WIDTHS if only in f"{n} {w}")


@click.command(help=__doc__)
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--only", default="", help="Cases whose name contains this.")
@click.option("--count", default=8, show_default=True, help="Images that each file is proven on.")
def main(output: Path, only: str, count: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = json.loads(output.read_text()) if output.exists() else {"files": {}, "costs": {}}
    results |= {"machine": asdict(this_machine()), "versions": dict(versions())}
    for name, width in cases(only):
        try:
            results["files"][f"{name} {width}"] = proven(name, width, count)
        except QdeployError as error:
            refusal = {"network": name, "width": width, "error": str(error)}
            results["files"][f"{name} {width}"] = refusal
        save(results, output)
    for name in dict.fromkeys(name for name, _ in cases(only)):
        results["costs"][name] = cost(name)
        save(results, output)


def save(results: dict[str, Any], output: Path) -> None:
    with atomic_write(output) as file:
        file.write(json.dumps(results, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
