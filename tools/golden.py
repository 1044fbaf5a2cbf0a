"""Whether a change of the code leaves every exported byte where it was.

    python tools/golden.py save golden.json        # before a refactoring
    python tools/golden.py compare golden.json     # after it; ends with 1 if a file is another

Each case prepares a network of tests/, trains it for three steps, calibrates and exports it: every
method, every target, and every family of networks. Seeds are fixed, so on one machine the same code
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import qdeploy

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import families  # type: ignore[import-not-found]
import networks  # type: ignore[import-not-found]

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "simqat-w8a8": ("residual", {"method": "simqat"}),
    "simqat-w4a4": ("residual", {"method": "simqat", "weight_bits": 4, "act_bits": 4}),
    "simqat-two-conv": ("residual", {"method": "simqat", "fold": "two-conv"}),
    "simqat-asymmetric": ("residual", {"method": "simqat", "weight_symmetric": False}),
    "slb-w1a8": ("residual", {"method": "slb", "weight_bits": 1}),
    "slb-w2a8": ("residual", {"method": "slb", "weight_bits": 2, "linear": True}),
    "dorefa-w2a2": ("residual", {"method": "dorefa", "weight_bits": 2, "act_bits": 2}),
    "dorefa-w16a16": ("residual", {"method": "dorefa", "weight_bits": 16, "act_bits": 16}),
    "pact-w4a4": ("residual", {"method": "pact", "weight_bits": 4, "act_bits": 4}),
    "lsq-w3a3": ("residual", {"method": "lsq", "weight_bits": 3, "act_bits": 3}),
    "ternary-w2a8": ("residual", {"method": "ternary", "weight_bits": 2}),
    "int8_training": ("residual", {"method": "int8_training"}),
    "xnor-w1a1": (
        "norm-first",
        {
            "method": "xnor",
            "weight_bits": 1,
            "act_bits": 1,
            "first_last_float": True,
        },
    ),
    "float-activations": ("residual", {"method": "simqat", "weight_bits": 4, "act_bits": "float"}),
}
FORMS: dict[str, dict[str, Any]] = {
    "tensorrt": {"target": "tensorrt"},
    "uint8": {"uint8_input": ([0.5] * 3, [0.25] * 3)},
    "unpacked": {"packing": False},
}
if find_spec("openvino"):  # export runs the file in it
    FORMS["openvino"] = {"target": "openvino"}


def cases() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each case's name, and what makes its file."""
    for name, (network, settings) in METHODS.items():
        yield name, partial(of_method, network, settings, {})
    for name, form in FORMS.items():
        yield name, partial(of_method, *METHODS["slb-w2a8"], form)
    for name in families.FAMILIES:
        yield f"family {name}", partial(of_family, name)


def of_method(network: str, settings: dict[str, Any], form: dict[str, Any]) -> bytes:
    return exported(network_of(network), images(), settings, form)


def of_family(name: str) -> bytes:
    return exported(families.build(name), families.inputs(name, 4), {"method": "simqat"}, {})


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "norm-first":
        made = qdeploy.load_network("resnet20s", {"norm_first": True})
    else:
        made = networks.Residual()
    network: nn.Module = networks.awkward_norms(made)
    return network


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(network: nn.Module, inputs: Any, settings: dict[str, Any], form: Any) -> bytes:
    """The file's bytes after three steps of training."""
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    options = dict(settings)
    method = options.pop("method")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = qdeploy.prepare(network.train(), inputs, method, **options)
        prepared.set_progress(0, 4)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)
        for _ in range(3):
            torch.manual_seed(1)
            outputs = torch.utils._pytree.tree_leaves(prepared(*given))
            loss = torch.stack([mse_loss(y, torch.ones_like(y)) for y in outputs]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        prepared.set_progress(3, 4)
        qdeploy.calibrate(prepared, [given], batch_norm=True)
        with tempfile.TemporaryDirectory() as folder:
            file = qdeploy.export(prepared, Path(folder) / "model.onnx", inputs, **form)
            return file.read_bytes()


def digests(only: str) -> dict[str, str]:
    """{case: SHA-256 of its file, or the error that it ends in}."""
    torch.set_num_threads(1)
    found = {}
    for name, make in cases():
        if only in name:
            try:
                found[name] = hashlib.sha256(make()).hexdigest()
            except Exception as error:  # an error is a result to keep as well
                found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            click.echo(f"{name}: {found[name][:60]}", err=True)
    return found


@click.command(help=__doc__)
@click.argument("action", type=click.Choice(["save", "compare"]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", default="", help="Cases whose name contains this.")
def main(action: str, file: Path, only: str) -> None:
    found = digests(only)
    if action == "save":
        file.write_text(json.dumps(found, indent=1) + "\n")
        return
    expected = json.loads(file.read_text())
    others = [name for name, digest in found.items() if digest != expected.get(name)]
    for name in others:
        click.echo(f"{name}: {found[name][:60]} in place of {expected.get(name)}")
    click.echo(f"{len(found) - len(others)} of {len(found)} files are the same")
    if others:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
