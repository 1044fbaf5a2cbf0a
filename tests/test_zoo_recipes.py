"""Every recipe of the zoo loads, builds its network, trains and exports, on a few images."""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from qdeploy.networks import load_network
from qdeploy.pipeline.assemble import data_of, example_input, float_network_of, trainable
from qdeploy.pipeline.export import build, integers_of, load_run
from qdeploy.pipeline.train import train
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import Recipe, zoo_recipes, zoo_summary

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
def test_it_prepares_its_network_for_its_data(name, root):
    recipe = Recipe.load(name)
    data = data_of(recipe, root, False, "cpu")
    network = trainable(recipe, float_network_of(recipe, data), data)
    assert isinstance(network, PreparedNetwork) == (recipe.quantize.method != "float")
    with torch.inference_mode():
        assert network.eval()(example_input(data)).shape == (2, 10)


@pytest.mark.parametrize("name", zoo_recipes())
def test_two_steps_are_trained_and_exported(name, root, tmp_path):
    recipe = Recipe.load(name, quick(name))
    run = train(recipe, tmp_path / "run", data_root=root, device="cpu")
    trained = load_run(run, "last", None, "cpu")
    fresh = load_network(recipe.model.network, recipe.model.options)
    assert len(list(trained.float_network.parameters())) == len(list(fresh.parameters()))

    ((images, _),) = trained.data.test.epoch(0)
    with torch.inference_mode():
        expected = trained.network.eval()(images).numpy()
    files = build(trained, integers_of(trained))
    model = files.model.SerializeToString()
    (found,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
        None, {"input": images.numpy()}
    )
    spread = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=0.1 * spread)
    if recipe.quantize.method != "float":
        assert len(model) < files.float.ByteSize() / 3


def quick(name):
    """A single epoch of two steps, a short float start, no waiting for quantization."""
    short = ["train.epochs=1", "train.warmup_epochs=0", "train.calibration_batches=1"]
    if "digits" in name:
        return [*short, "train.float_epochs=1", "data.batch_size=720"]
    return [*short, "train.float_epochs=0", "data.batch_size=6"]
