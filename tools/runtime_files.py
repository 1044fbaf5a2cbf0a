"""The files that tools/try_runtimes.py gives to each runtime, with inputs that all of them read.

Networks are small ones of tests/ and the zoo's LeNet-5. Their weights are random, their norms and ranges
those of the random images that they then run on.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qdeploy
from qdeploy.deploy.targets import available
from qdeploy.errors import QdeployError

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import families  # type: ignore[import-not-found]
import networks  # type: ignore[import-not-found]

WIDTHS: dict[str, dict[str, Any]] = {
    "W8A8": {"method": "simqat"},
    "W4A8": {"method": "simqat", "weight_bits": 4},
    "W4A4": {"method": "simqat", "weight_bits": 4, "act_bits": 4},
    "W2A2": {"method": "lsq", "weight_bits": 2, "act_bits": 2},
    "W1A1": {"method": "dorefa", "weight_bits": 1, "act_bits": 1, "first_last_float": True},
    "W4": {"method": "simqat", "weight_bits": 4, "act_bits": "float"},
}
SAMPLES = 16

# Each kind of network at 8 bits and at the fewest, the residual one and LeNet-5 at all.
FEW = ("W8A8", "W1A1")
NETWORKS: dict[str, tuple[str, ...]] = {
    "residual": tuple(WIDTHS),
    "lenet5": tuple(WIDTHS),
    "unet": FEW,
    "mobilenet_v3": FEW,
    "vit": FEW,
}


def export_all(folder: Path, processes: int) -> dict[str, str]:
    """Exports each network at its widths for each target; {case: why there is no file of it}.

    A case is "target/width/network", a folder with model.onnx, inputs.json and the inputs' bytes.
    """
    jobs = [(network, width) for network, widths in NETWORKS.items() for width in widths]
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return dict(pair for found in pool.map(partial(_export, folder), jobs) for pair in found)


def _export(folder: Path, job: tuple[str, str]) -> list[tuple[str, str]]:
    network, width = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    inputs = inputs_of(network)
    prepared = qdeploy.prepare(network_of(network), inputs, **WIDTHS[width])
    prepared.set_progress(9, 10)
    qdeploy.calibrate(prepared, [inputs], batch_norm=True)
    refused = []
    for target in available():
        case = f"{target}/{width}/{network}"
        try:
            write_case(folder / case, prepared, inputs, target)
        except QdeployError as error:
            refused.append((case, str(error)))
    return refused


def write_case(case: Path, prepared: nn.Module, inputs: Tensor, target: str) -> None:
    """model.onnx, and each input's bytes in a file that inputs.json names."""
    case.mkdir(parents=True, exist_ok=True)
    qdeploy.export(prepared, case / "model.onnx", inputs[:2], target=target)
    array = inputs.numpy()
    array.tofile(case / "input.bin")
    entry = {"name": "input", "dtype": array.dtype.name, "shape": array.shape, "file": "input.bin"}
    (case / "inputs.json").write_text(json.dumps([entry]))


def cases(folder: Path) -> Iterator[str]:
    """The cases that have a file, in a fixed order."""
    for target in available():
        for width in WIDTHS:
            for network in NETWORKS:
                if (folder / target / width / network / "model.onnx").exists():
                    yield f"{target}/{width}/{network}"


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module
    if name == "residual":
        network = networks.awkward_norms(networks.Residual())
    elif name == "lenet5":
        network = qdeploy.load_network(name, {})
    else:
        network = families.build(name)
    return network.train()


def inputs_of(name: str) -> Tensor:
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))
