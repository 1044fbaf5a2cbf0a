"""Whether data and processes keep up with training on a CPU.

    python tools/compare_feeding.py results/feeding.json

Images a second of the loader alone beside those of a float training step, for images of 32x32 in
memory and for JPEG files trained at 224x224; and of training in one process with two threads beside
two processes with one. All images are made up here.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import trainers
from compare_inference import versions
from contenders import Contender, measure
from PIL import Image

from qdeploy.benchmark import this_machine
from qdeploy.data.batches import ArrayBatches, Batches, Normalisation
from qdeploy.data.open import open_data
from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

MEAN, STD = (0.5,) * 3, (0.25,) * 3
CLASSES = 10
RECIPE = """
[model]
network = "resnet20s"

[data]
dataset = "folder"
root = "{root}"
image_size = 32
batch_size = 128
workers = 0
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[quantize]
method = "simqat"

[train]
epochs = 3
lr = 0.05
"""


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
def main(results: Path) -> None:
    content = {
        "machine": asdict(this_machine()),
        "versions": dict(versions()),
        "loaders": [small_images(), large_images()],
        "processes": processes(),
    }
    click.echo(json.dumps(content, indent=1))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(content, indent=1) + "\n")


def small_images() -> dict[str, Any]:
    """As CIFAR-10: 50,000 images of 32x32 in memory, shifted and mirrored; ResNet-20."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50_000, 3, 32, 32), np.uint8)
    labels = random.integers(0, CLASSES, len(images))
    section = DataSection(dataset="cifar10", batch_size=128, pad_crop=4, flip=True)
    data, normalise = LabelledImages(images, labels), Normalisation(MEAN, STD, "cpu")
    batches = ArrayBatches(data, section, normalise, seed=0)
    return compared("32x32 in memory, ResNet-20", batches, "resnet20s", (128, 3, 32, 32))


def large_images() -> dict[str, Any]:
    """JPEG files of 400x300, random crops of 224x224; ResNet-18, its stem that of ImageNet."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 640, (400, 300), "jpg")
        section = DataSection(dataset="folder", root=folder, batch_size=32)
        data = open_data(section, None, False, "cpu", 0)
        network = 'resnet18 {"stem": "imagenet"}'
        return compared("JPEG files at 224x224, ResNet-18", data.train, network, (32, 3, 224, 224))


def compared(
    name: str, batches: Batches, network: str, shape: tuple[int, int, int, int]
) -> dict[str, Any]:
    alone = [rate(batches, epoch) for epoch in range(3)]
    contender = Contender("float", trainers.float_channels_last, network)
    steps = measure([contender], shape, 2, 4)[contender.name]
    if isinstance(steps, str):
        raise QdeployError(f"float training failed: {steps}")
    training = shape[0] / statistics.median(steps) * 1e3
    loader = statistics.median(alone)
    return {
        "data": name,
        "loader_per_s": loader,
        "training_per_s": training,
        "ratio": loader / training,
    }


def rate(batches: Batches, epoch: int) -> float:
    """Images a second over an epoch."""
    start, images = time.perf_counter(), 0
    for some, _ in batches.epoch(epoch):
        images += len(some)
    return images / (time.perf_counter() - start)


def processes() -> dict[str, Any]:
    """One process with two threads, two processes with one: the same batches, the same results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 2560, (32, 32), "png")
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(root=folder / "images"))
        rows = {count: trained(recipe, folder / f"run{count}", count) for count in (1, 2)}
    seconds = {count: min(float(row["seconds"]) for row in found) for count, found in rows.items()}
    losses = {count: [float(row["train_loss"]) for row in found] for count, found in rows.items()}
    return {
        "epoch_seconds": seconds,
        "throughput_of_two_over_one": seconds[1] / seconds[2],
        "train_loss": losses,
    }


def trained(recipe: Path, run: Path, count: int) -> list[dict[str, str]]:
    """The lines of metrics.csv."""
    qdeploy = Path(sys.executable).with_name("qdeploy")
    command = [str(qdeploy), "train", str(recipe), "-o", str(run)]
    subprocess.run([*command, "--device", "cpu", "--devices", str(count)], check=True)
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def write_images(root: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """root/train and root/val with CLASSES classes: smooth colours, as photographs compress."""
    random = np.random.default_rng(0)
    for split, images in (("train", count), ("val", CLASSES)):
        for index in range(images):
            folder = root / split / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            picture.save(folder / f"{index}.{suffix}")


if __name__ == "__main__":
    main()
