"""What tools that people run on a finished file make of it, and what `qdeploy pack` makes of that.

    python tools/afterwards.py results/afterwards.json --python OTHER/bin/python

Weights are random. Each tool runs in a process of its own: with this Python if its package is here, else
with the one that is given. `python tools/tables.py` makes docs/proof.md of it.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

import qdeploy
from qdeploy.benchmark import this_machine
from qdeploy.deploy.repack import repack
from qdeploy.deploy.seal import state
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.onnx_file import read
from qdeploy.record import INTEGER_PRODUCTS

# name -> network, image, settings
FILES: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "LeNet-5 W1A8": ("lenet5", (1, 28, 28), {"method": "slb", "weight_bits": 1, "linear": True}),
    "ResNet-20 W2A4": (
        "resnet20s",
        (3, 32, 32),
        {"method": "lsq", "weight_bits": 2, "act_bits": 4},
    ),
    "ResNet-20 W4A8": ("resnet20s", (3, 32, 32), {"method": "simqat", "weight_bits": 4}),
}

SAVED = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_{level}
options.optimized_model_filepath = target
options.add_session_config_entry("session.save_model_format", "{form}")
onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
"""

# name -> package, what a user types; it reads `source` and writes `target`
TOOLS: dict[str, tuple[str, str]] = {
    "onnxsim": (
        "onnxsim",
        "import onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(source))[0], target)",
    ),
    "onnxslim": ("onnxslim", "import onnxslim; onnxslim.slim(source, target)"),
    "onnxscript.optimizer.optimize": (
        "onnxscript",
        "import onnx; from onnxscript import optimizer; "
        "onnx.save(optimizer.optimize(onnx.load(source)), target)",
    ),
    "onnxscript.optimizer.fold_constants": (
        "onnxscript",
        "import onnx_ir; from onnxscript import optimizer; model = onnx_ir.load(source); "
        "optimizer.fold_constants(model); onnx_ir.save(model, target)",
    ),
    "ONNX Runtime, saved: basic": ("onnxruntime", SAVED.format(level="BASIC", form="ONNX")),
    "ONNX Runtime, saved: extended": ("onnxruntime", SAVED.format(level="EXTENDED", form="ONNX")),
    "ONNX Runtime, ORT format": ("onnxruntime", SAVED.format(level="EXTENDED", form="ORT")),
    "quant_pre_process": (
        "onnxruntime",
        "from onnxruntime.quantization.shape_inference import quant_pre_process; "
        "quant_pre_process(source, target)",
    ),
    "onnxconverter-common, float16": (
        "onnxconverter_common",
        "import onnx; from onnxconverter_common.float16 import convert_float_to_float16; "
        "onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)",
    ),
}


def exported(name: str, folder: Path) -> Path:
    network, image, settings = FILES[name]
    torch.manual_seed(0)
    images = torch.randn(16, *image)
    prepared = qdeploy.prepare(qdeploy.load_network(network, {}), images[:2], **settings)
    prepared.set_progress(9, 10)
    qdeploy.calibrate(prepared, [images], batch_norm=True)
    return qdeploy.export(prepared, folder / "model.onnx", images[:2])


def run_tool(tool: str, source: Path, target: Path, python: str | None) -> None:
    package, code = TOOLS[tool]
    here = importlib.util.find_spec(package) is not None
    if not here and python is None:
        raise QdeployError(
            f"{package} is not installed; give --python of an environment that has it"
        )
    program = f"import sys; source, target = sys.argv[1:]\n{code}"
    command = [sys.executable if here else str(python), "-c", program, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not target.exists():
        reason = (done.stderr.strip() or "it wrote nothing").splitlines()[-1]
        raise QdeployError(f"{tool} failed: {reason}")


def version_of(package: str, python: str | None) -> str:
    """Of the one that `run_tool` runs."""
    here = importlib.util.find_spec(package) is not None
    code = f"import {package}; print({package}.__version__)"
    command = [sys.executable if here or python is None else python, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def ran(path: Path, images: NDArray[np.float32], folder: Path) -> tuple[NDArray[np.float32], int]:
    """The outputs of ONNX Runtime, and how many products ran on integer kernels."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.log_severity_level = 3
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images})[0]
    events = json.loads(Path(session.end_profiling()).read_text())
    names = Counter(
        event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")
    )
    integers = sum(names[name] for name in {"QLinearConv", "QLinearMatMul", *INTEGER_PRODUCTS})
    return outputs, integers


def afterwards(name: str, tool: str, source: Path, python: str | None) -> dict[str, Any]:
    """Sizes, outputs and kernels of a file before the tool, behind it, and packed again."""
    folder = source.parent
    made = folder / ("made.ort" if tool.endswith("ORT format") else "made.onnx")
    made.unlink(missing_ok=True)
    run_tool(tool, source, made, python)
    shape = (16, *FILES[name][1])
    images = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    expected, integers = ran(source, images, folder)
    try:
        outputs, kept = ran(made, images, folder)
    except Exception as error:  # of ONNX Runtime, which has no class for them all
        reason = str(error).rpartition("failed:")[2]
        raise QdeployError(f"ONNX Runtime does not load it: {reason}") from error
    row = {
        "file": name, "tool": tool, "bytes": source.stat().st_size,
        "bytes_behind": made.stat().st_size, "bit_equal": np.array_equal(outputs, expected),
        "integer": integers, "integer_behind": kept,
    }  # fmt: skip
    if made.suffix == ".ort":
        return row
    packed = repack(made, folder / "again.onnx")
    row |= {"seal": state(read(made), folder).value, "bytes_packed": packed.after}
    if packed.weights:
        again, integers_packed = ran(packed.file, images, folder)
        row["pack_bit_equal"] = np.array_equal(again, outputs)
        row["integer_packed"] = integers_packed
    return row


@click.command(help=__doc__)
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--python", help="The Python of an environment with the packages that are not here.")
def main(output: Path, python: str | None) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in FILES:
        with tempfile.TemporaryDirectory() as folder:
            source = exported(name, Path(folder))
            for tool in TOOLS:
                try:
                    rows.append(afterwards(name, tool, source, python))
                except QdeployError as error:
                    rows.append({"file": name, "tool": tool, "error": str(error)})
                print(rows[-1], flush=True)
    packages = dict.fromkeys(package for package, _ in TOOLS.values())
    found = {package: version_of(package, python) for package in packages}
    results = {"machine": asdict(this_machine()), "versions": found, "rows": rows}
    with atomic_write(output) as file:
        file.write(json.dumps(results, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
