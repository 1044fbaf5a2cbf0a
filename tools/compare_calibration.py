"""Accuracy without training: qdeploy's calibration beside onnxruntime's quantize_static.

    python tools/compare_calibration.py results/calibration.json --data-root DATA

Trains small float networks, unless their run folders are there already, and quantizes each in every
way, all from the same images. tools/tables.py makes a table of the file.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from static_quantization import quantized_statically
from torch import Tensor, nn

import qdeploy
from qdeploy.benchmark.runtime import Session, open_session
from qdeploy.data import Data, open_data
from qdeploy.models.mobilenet import InvertedResidual, conv_norm
from qdeploy.models.resnet import BasicBlock, projection, stages
from qdeploy.pipeline.assemble import float_network_of
from qdeploy.pipeline.train import train
from qdeploy.preparation.ranges import RANGES
from qdeploy.recipe import CalibrateSection, Recipe
from qdeploy.tasks import Classification
from qdeploy.training.evaluate import evaluate
from qdeploy.training.weights import load_float_weights

BATCH = 32
Tests = list[tuple[Tensor, Tensor]]


def mobilenet() -> nn.Sequential:
    """A MobileNetV2 of six blocks for images of 32x32."""
    shapes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 1)]
    return nn.Sequential(
        conv_norm(3, 16, 3, 2, activation=nn.ReLU6),
        *(InvertedResidual(i, 4 * i, o, 3, stride, nn.ReLU6) for i, o, stride in shapes),
        conv_norm(64, 128, activation=nn.ReLU6),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


def resnet() -> nn.Sequential:
    """Six blocks for images of 32x32, the first convolution with stride 2."""
    shapes = [(2, 16, 16), (2, 32, 32), (2, 64, 64)]
    return nn.Sequential(
        conv_norm(3, 16, 3, 2, activation=nn.ReLU),
        *stages(BasicBlock, projection, 16, shapes, norm_first=False),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


TRAINING = {"weight_decay": 5e-4, "nesterov": True, "warmup_epochs": 1}
HERE = Path(__file__).resolve()
# Name: network, its options, data, epochs in float and their learning rate.
NETWORKS: dict[str, tuple[str, dict[str, Any], str, int, float]] = {
    "LeNet-5": ("lenet5", {}, "mnist", 2, 0.05),
    "LeNet-5 without BatchNorm": ("lenet5", {"batch_norm": False}, "mnist", 2, 0.05),
    "MobileNet": (f"{HERE}:mobilenet", {}, "cifar10", 6, 0.1),
    "ResNet": (f"{HERE}:resnet", {}, "cifar10", 4, 0.1),
}


@dataclass(frozen=True)
class Way:
    """How qdeploy quantizes: what `prepare` and `calibrate` are given."""

    prepare: Mapping[str, Any]
    calibrate: Mapping[str, Any]


def ways() -> dict[str, Way]:
    """Every range, and the default one with what may be added to it."""
    nothing = {"batch_norm": False, "correct_bias": False}
    found = {ranges: Way({}, nothing | {"ranges": ranges}) for ranges in RANGES}
    best = CalibrateSection().ranges
    even, correct = {"equalize": True}, {"correct_bias": True}
    found |= {
        f"{best}, equalize": Way(even, nothing | {"ranges": best}),
        f"{best}, correct_bias": Way({}, nothing | correct | {"ranges": best}),
        f"{best}, equalize, correct_bias": Way(even, nothing | correct | {"ranges": best}),
        f"{best}, batch_norm": Way({}, nothing | {"batch_norm": True, "ranges": best}),
    }
    return found


Command = Callable[..., None]


def of_trained_networks(command: Command) -> Command:
    """The options of a tool that compares on the float networks of NETWORKS."""
    options = (
        click.argument("results", type=click.Path(path_type=Path)),
        click.option("--data-root", type=click.Path(path_type=Path)),
        click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/calibration")),
        click.option(
            "--batches", default=16, show_default=True, help="Of 32 images, to calibrate on."
        ),
        click.option("--title", help="What the data are called, if not by their usual name."),
        click.option(
            "--network", "chosen", multiple=True, default=tuple(NETWORKS), show_default=True
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@of_trained_networks
@click.option("--test-images", default=10_000, show_default=True)
def main(
    results: Path,
    data_root: Path | None,
    runs: Path,
    batches: int,
    test_images: int,
    title: str | None,
    chosen: tuple[str, ...],
) -> None:
    """Writes a row for each network and number of weight bits to RESULTS."""
    rows = json.loads(results.read_text()) if results.exists() else []
    for name in chosen:
        network, data = trained(name, data_root, runs)
        tests = list(data.test.shortened(test_images).epoch(0))
        images = list(itertools.islice(calibration_images(data), batches))
        for bits in (8, 4):
            new = row(name, title or data.title, network.eval(), tests, images, bits)
            rows = [old for old in rows if (old["network"], old["weight_bits"]) != (name, bits)]
            rows.append(new)
            click.echo(json.dumps(new))
            results.write_text(json.dumps(rows, indent=1) + "\n")


def trained(name: str, data_root: Path | None, runs: Path) -> tuple[nn.Module, Data]:
    """The float network of a name and its data; it is trained if its run is not there."""
    recipe = recipe_of(name, data_root)
    folder = runs / name.replace(" ", "-")
    train(recipe, folder, resume=folder.exists(), device="cpu")
    data = open_data(recipe.data, None, False, "cpu", recipe.train.seed)
    network = float_network_of(recipe, data, Classification())
    load_float_weights(network, folder / "last.pt")
    return network, data


def recipe_of(name: str, root: Path | None) -> Recipe:
    network, options, dataset, epochs, lr = NETWORKS[name]
    return Recipe.model_validate(
        {
            "name": name,
            "model": {"network": network, "options": options},
            "data": {"dataset": dataset, "root": None if root is None else str(root)},
            "train": TRAINING | {"epochs": epochs, "lr": lr},
        }
    )


def calibration_images(data: Data) -> Iterator[Tensor]:
    for images, _ in data.train.epoch(0):
        yield from images.split(BATCH)


def row(
    name: str, title: str, network: nn.Module, tests: Tests, images: list[Tensor], bits: int
) -> dict[str, Any]:
    """Top-1 of the float network and of each way to quantize it."""
    top1 = {"float": top1_of(network, tests)}
    for label, way in ways().items():
        prepared = qdeploy.prepare(network, images[0], "simqat", bits, **way.prepare)
        qdeploy.calibrate(prepared, images, **way.calibrate)
        top1[label] = top1_of(prepared, tests)
    with tempfile.TemporaryDirectory() as folder:
        model = qdeploy.export(network, Path(folder) / "float.onnx", images[0])
        batches = [[batch.numpy()] for batch in images]
        file = quantized_statically(model, Path(folder) / "int.onnx", batches, bits)
        top1["quantize_static"] = top1_of(open_session(file), tests)
    return {
        "network": name,
        "data": title,
        "weight_bits": bits,
        "calibration_images": sum(map(len, images)),
        "test_images": sum(len(labels) for _, labels in tests),
        "onnxruntime": onnxruntime.__version__,
        "default": f"{CalibrateSection().ranges}, correct_bias",
        "top1": top1,
    }


def top1_of(form: nn.Module | Session, tests: Tests) -> float:
    """Of a network what ships of it."""
    if isinstance(form, nn.Module):
        return evaluate(form, tests, Classification(), classes=10)["top1"]
    hits = [np.argmax(form.run(images.numpy()), 1) == labels.numpy() for images, labels in tests]
    return float(np.concatenate(hits).mean())


if __name__ == "__main__":
    main()
