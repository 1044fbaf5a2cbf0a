"""timm as it is: whether the smallest network of each family goes through.

    python tools/timm_families.py results/timm.json                  # all families
    python tools/timm_families.py results/timm.json regnet vovnet    # these anew
    python tools/timm_families.py results/timm.json --export         # the files as well, which is slow

Weights are random, and images as small as the network takes. Each network is prepared for SimQAT at 8
bits, calibrated with one batch and converted, in a process of its own. tools/tables.py makes the table of
docs/timm.md of the file.

timm needs torchvision, whose wheels each fit one build of torch. Nothing here needs its compiled
operators, so `pip install --no-deps timm torchvision safetensors huggingface_hub pyyaml` is enough.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch
from torch import Tensor, nn

import qdeploy
from qdeploy.benchmark.runtime import open_session
from qdeploy.files import atomic_write

SIZES = (64, 96, 128, 160, 192, 224, 256)
BATCH = 4


@dataclass(frozen=True)
class Attempt:
    """How far a network came.

    share      of its multiplications that have integer weights and inputs
    error      |integers - float| / |float| of the outputs for other images than those of calibration
    exported   whether ONNX Runtime gives what the integers in torch give; None if not asked
    reason     what stopped it, "" if nothing did
    """

    family: str
    network: str
    parameters: int
    size: int = 0
    share: float = 0.0
    error: float = 0.0
    exported: bool | None = None
    reason: str = ""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("families", nargs=-1)
@click.option("--export", "exports", is_flag=True, help="Also write each file and run it.")
@click.option("--seconds", default=600, show_default=True, help="At most for one network.")
@click.option("--alone", hidden=True, help="Tries what this row says, here, and prints the row.")
def main(
    file: Path, families: tuple[str, ...], exports: bool, seconds: int, alone: str | None
) -> None:
    if alone is not None:
        print(json.dumps(asdict(attempt(Attempt(**json.loads(alone)), exports))))
        return
    known = json.loads(file.read_text()) if file.exists() else {}
    for family in families or timm().list_modules():
        start = Attempt(**known[family]) if family in known else smallest(family)
        tried = in_a_process(start, exports, seconds)
        known[family] = asdict(tried)
        print(family, tried.reason or "goes through", flush=True)
        with atomic_write(file) as written:
            rows = {name: known[name] for name in sorted(known)}
            written.write(json.dumps(rows, indent=1).encode() + b"\n")


def in_a_process(start: Attempt, exports: bool, seconds: int) -> Attempt:
    """Tries one network; what takes too long or brings Python down has that for its reason."""
    command = [sys.executable, __file__, "-", "--alone", json.dumps(asdict(start))]
    try:
        done = subprocess.run(
            command + ["--export"] * exports, capture_output=True, text=True, timeout=seconds
        )
        return Attempt(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return replace(start, reason=f"takes more than {seconds} s")
    except (IndexError, ValueError):
        return replace(start, reason=done.stderr.strip().splitlines()[-1])


def timm() -> ModuleType:
    """timm beside a torchvision whose compiled operators are of another build."""
    for name in ("_meta_registrations", "_autograd_registrations"):
        sys.modules[f"torchvision.{name}"] = ModuleType(name)
    return importlib.import_module("timm")


def smallest(family: str) -> Attempt:
    """The network of the family with the fewest parameters; timm's own for tests are left out."""
    names = [name for name in timm().list_models(module=family) if not name.startswith("test_")]
    count, network = min((parameters_of(name), name) for name in names)
    return Attempt(family, network, int(count))


def parameters_of(name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm().create_model(name).parameters())
    except Exception:  # some compute with numbers while they are made
        return float("inf")


def attempt(found: Attempt, exports: bool) -> Attempt:
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    model = timm().create_model(found.network).eval()
    found = replace(found, size=smallest_size(model), reason="", exported=None)
    try:
        return replace(found, **figures(model, found.size, exports))
    except Exception as error:
        return replace(found, reason=f"{type(error).__name__}: {error}".partition("\n")[0][:300])


def smallest_size(model: nn.Module) -> int:
    """Of the images that the network takes."""
    configuration: Any = model.default_cfg
    own: int = configuration["input_size"][1]
    for size in (*(size for size in SIZES if size < own), own):
        try:
            with torch.no_grad():
                model(images(size))
            return size
        except Exception:
            continue
    raise ValueError(f"the network does not take its own size, {own}")


def images(size: int) -> Tensor:
    return torch.randn(BATCH, 3, size, size)


@torch.no_grad()
def figures(model: nn.Module, size: int, exports: bool) -> Mapping[str, Any]:
    x = images(size)
    prepared = qdeploy.prepare(model, x, "simqat")
    qdeploy.calibrate(prepared, [x])
    work = qdeploy.complexity(prepared, x[:1]).layers
    integers = sum(layer.macs for layer in work if layer.weight_bits and layer.act_bits)
    share = integers / sum(layer.macs for layer in work)
    x = images(size)
    converted = qdeploy.convert(prepared)
    found, expected = converted(x), model(x)
    error = float((found - expected).norm() / expected.norm())
    same = runs_alike(converted, found, x) if exports else None
    return {"share": share, "error": error, "exported": same}


def runs_alike(converted: nn.Module, expected: Tensor, x: Tensor) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = qdeploy.export(converted, Path(folder) / "model.onnx", x)
        found = open_session(file, "cpu").run(x.numpy())
    return bool((torch.from_numpy(found) - expected).norm() < 0.01 * expected.norm())


if __name__ == "__main__":
    main()
