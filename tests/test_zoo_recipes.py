"""Every recipe of the zoo loads, builds its network, trains and exports, on a few images."""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import qdeploy
from qdeploy.pipeline.export import load_run
from qdeploy.pipeline.train import train
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import Recipe, zoo_recipes, zoo_summary
from qdeploy.training.record import read_metrics

sys.path.append(str(Path(__file__).parent / "data"))
from published import cifar_files, write_cifar_folder, write_mnist

NAME = re.compile(
    r"(?P<network>[a-z0-9]+)-(?P<data>[a-z0-9]+)-(?P<method>[a-z0-9]+)"
    r"(-w(?P<weights>\d)a(?P<acts>\d|float))?"
)
ASKED_FOR = {
    "lenet5-digits-slb-w1a8",
    "lenet5-mnist-float",
    "lenet5-mnist-simqat",
    "lenet5-mnist-slb-w1a8",
    "lenet5-mnist-slb-w2a8",
    "lenet5-mnist-slb-w4a8",
    "resnet18-cifar10-float",
    "resnet18-cifar10-slb-w1a8",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder / "mnist")
    write_mnist(folder / "fashion-mnist")
    write_cifar_folder(folder / "cifar10" / "cifar-10-batches-bin", cifar_files(records=2))
    return folder


def test_the_recipes_that_were_asked_for_are_there():
    assert set(zoo_recipes()) >= ASKED_FOR


@pytest.mark.parametrize("name", zoo_recipes())
def test_the_name_says_what_it_is(name):
    parts = NAME.fullmatch(name)
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.model.network == parts["network"]
    assert recipe.data.dataset == parts["data"]
    assert recipe.quantize.method == parts["method"]
    if parts["weights"]:
        assert str(recipe.quantize.weight_bits) == parts["weights"]
        assert str(recipe.quantize.act_bits or "float") == parts["acts"]
    assert zoo_summary(name)


@pytest.mark.parametrize("name", zoo_recipes())
def test_two_steps_are_trained_and_exported(name, root, tmp_path):
    run = train(Recipe.load(name, quick(name)), tmp_path / "run", data_root=root, device="cpu")
    trained = load_run(run, "last", None, "cpu")
    assert isinstance(trained.network, PreparedNetwork) == ("float" not in name)
    assert read_metrics(run.metrics)[0]["steps"] == 2

    ((images, _),) = trained.data.test.epoch(0)
    with torch.inference_mode():
        expected = trained.network.eval()(images).numpy()
    file = qdeploy.export(trained.network, tmp_path / "model.onnx", images)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images.numpy()})
    assert expected.shape == (len(images), 10)
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())
    weights = sum(parameter.numel() for parameter in trained.float_network.parameters())
    assert file.stat().st_size < weights * (5 if "float" in name else 1.2)


def quick(name):
    """A single epoch of two steps, a short float start, no waiting for quantization."""
    short = ["train.epochs=1", "train.warmup_epochs=0", "train.calibration_batches=1"]
    if "digits" in name:
        return [*short, "train.float_epochs=1", "data.batch_size=720"]
    return [*short, "train.float_epochs=0", "data.batch_size=6"]
