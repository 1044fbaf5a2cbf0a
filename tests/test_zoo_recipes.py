"""Every recipe of the zoo loads, builds its network, trains and exports, on a few images."""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import qdeploy
from qdeploy.metrics import read_metrics
from qdeploy.pipeline.train import train
from qdeploy.pipeline.trained_run import load_run
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import Recipe, zoo_recipes, zoo_summary

sys.path.append(str(Path(__file__).parent / "data"))
from published import cifar_files, write_cifar_folder, write_mnist

NAME = re.compile(
    r"(?P<network>[a-z0-9]+)-(?P<data>[a-z0-9]+)-(?P<method>[a-z0-9_]+)"
    r"(-w(?P<weights>\d+)a(?P<acts>\d+|float))?(-(?P<order>norm-first))?"
)
DATASETS = {"imagenet": "folder"}
# The rows of the tables that the project grew from, and those of its own README.
DOREFA = [f"dorefa-w{bits}a{bits}" for bits in (1, 2, 4, 8, 16)]
SLB = [f"slb-w{bits}a{acts}" for bits in (1, 2, 4) for acts in ("8", "float")]
ASKED_FOR = {
    "lenet5-digits-slb-w1a8",
    *(f"lenet5-mnist-{row}" for row in ("float", "simqat", "slb-w1a8", "slb-w2a8", "slb-w4a8")),
    *(f"resnet18-cifar10-{row}" for row in ("float", "int8_training", *SLB)),
    *(f"resnet18-imagenet-{row}" for row in ("float", "int8_training", *SLB[1::2])),
    *(f"resnet50-{data}-{row}" for data in ("cifar10", "imagenet") for row in ("float", "simqat")),
    *(
        f"{network}-cifar10-{row}"
        for network in ("resnet20", "nin")
        for row in ("float", "xnor-w1a1", "ternary-w2afloat", *DOREFA)
    ),
    "nin-cifar10-dorefa-w1a1-norm-first",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder / "mnist")
    write_cifar_folder(folder / "cifar10" / "cifar-10-batches-bin", cifar_files(records=2))
    random = np.random.default_rng(0)
    for number in range(16):
        split, label = "train" if number < 12 else "val", number % 2
        place = folder / "imagenet" / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_the_recipes_that_were_asked_for_are_there():
    assert set(zoo_recipes()) >= ASKED_FOR


@pytest.mark.parametrize("name", zoo_recipes())
def test_the_name_says_what_it_is(name):
    parts = NAME.fullmatch(name)
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.model.network == parts["network"]
    assert recipe.data.dataset == DATASETS.get(parts["data"], parts["data"])
    # Signs need values of both signs, so BatchNorm comes first.
    signs = parts["order"] is not None or parts["method"] == "xnor"
    assert recipe.model.options.get("norm_first", False) == signs
    assert recipe.quantize.method == parts["method"]
    if parts["weights"]:
        assert str(recipe.quantize.weight_bits) == parts["weights"]
        assert str(recipe.quantize.act_bits or "float") == parts["acts"]
    assert zoo_summary(name)


@pytest.mark.parametrize("name", zoo_recipes())
def test_two_steps_are_trained_and_exported(name, root, tmp_path):
    folder = root / "imagenet" if "imagenet" in name else root
    run = train(Recipe.load(name, quick(name)), tmp_path / "run", data_root=folder, device="cpu")
    trained = load_run(run, "last", None, "cpu")
    assert isinstance(trained.network, PreparedNetwork) == (
        trained.recipe.quantize.method != "float"
    )
    assert read_metrics(run.metrics)[0]["steps"] == 2

    images, _ = next(trained.data.test.epoch(0))
    with torch.inference_mode():
        expected = trained.network.eval()(images).numpy()
    file = qdeploy.export(trained.network, tmp_path / "model.onnx", images)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images.numpy()})
    assert expected.shape == (len(images), len(trained.data.classes))
    # Of a few levels one step is far, and an untrained network does not forgive it.
    few = (trained.recipe.quantize.act_bits or 32) <= 2
    tolerance = (0.5 if few else 0.1) * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    weights = sum(parameter.numel() for parameter in trained.float_network.parameters())
    bits = (
        32
        if trained.recipe.quantize.method == "float"
        else max(8, trained.recipe.quantize.weight_bits)
    )
    assert file.stat().st_size < weights * 1.25 * bits / 8


def quick(name):
    """A single epoch of two steps, a short float start, no waiting for quantization."""
    short = ["train.epochs=1", "train.warmup_epochs=0", "train.calibration_batches=1"]
    if "digits" in name:
        return [*short, "train.float_epochs=1", "data.batch_size=720"]
    if "imagenet" in name:
        short += ["data.image_size=64", "data.workers=0", "model.options.num_classes=2"]
    return [*short, "train.float_epochs=0", "data.batch_size=6"]
