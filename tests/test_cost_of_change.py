"""What a change costs: each kind of addition is one file or one row, put in here from outside.

| to add | write |
|---|---|
| a method | one file: qdeploy/methods/NAME.py, or a module of another package |
| a data set | one file: qdeploy/datasets/NAME.py, or a module of another package |

If an addition needed anything else, a run with it would fail here. A class for each kind.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qdeploy
from qdeploy.data import open_data
from qdeploy.layers.activation import DeferredReLU
from qdeploy.recipe import Recipe

ROOT = Path(__file__).parents[1]

# A method that learns nothing about the rest of qdeploy but what docs/add-a-method.md says.
METHOD = '''
from torch import Tensor, nn, zeros

from qdeploy import processes
from qdeploy.grid import Grid, QTensor
from qdeploy.layers.activation import ActivationQuantizer, MovingRange
from qdeploy.layers.fake_quantize import straight_through
from qdeploy.layers.weight import WeightQuantizer, per_channel
from qdeploy.methods import Method, Options


class Rounded(WeightQuantizer):
    """The nearest multiple of a third of each channel's largest weight."""

    def __init__(self, site, bits, options):
        super().__init__()
        self.latent = nn.Parameter(site.weight.detach().clone())
        self.grid = Grid.signed(bits, narrow=True)

    def relax(self, latent):
        return straight_through(self.collapse(latent).dequantize(), latent)

    def collapse(self, latent):
        scale = latent.detach().abs().flatten(1).amax(1).clamp(min=1e-6) / self.grid.highest
        codes = (latent.detach() / per_channel(scale, latent)).round()
        return QTensor.symmetric(codes, scale, self.grid)


class UpToTheLargest(ActivationQuantizer):
    """From 0 to the largest value of the last batch, of all processes."""

    largest: Tensor
    can_take_over_relu = True

    def __init__(self, bits):
        super().__init__(Grid.unsigned(bits))
        self.register_buffer("largest", zeros(()))

    def observe(self, x):
        _, highest = processes.extremes(x.min(), x.max())
        self.largest.copy_(highest)

    def reset(self):
        self.largest.zero_()

    def qparams(self):
        return self.largest.clamp(min=1e-6) / self.grid.highest, self.largest.new_zeros(())


METHOD = Method(
    summary="for a test",
    paper="none",
    weight=Rounded,
    activation=lambda site, bits, options: UpToTheLargest(bits),
    carrier=lambda bits, options: MovingRange(bits),
    weight_bits=(3,),
    act_bits=(4,),
    options=Options,
)
'''

# The data set of docs/recipes.md, as it stands there.
DATASET = (ROOT / "docs" / "recipes.md").read_text().split("```python")[1].split("```")[0]

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2),
    )
"""

RECIPE = """
model = { network = "net.py:make" }
data = { dataset = "two-words", root = ".", batch_size = 20 }
quantize = { method = "throwaway", weight_bits = 3, act_bits = 4, first_last_float = false }
train = { epochs = 2, lr = 0.02 }
"""


def stripes(count):
    """uint8 [count, 1, 8, 8]: noise, brighter in every other row or, in odd images, column."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    images[::2, :, ::2, :] += 150
    images[1::2, :, :, ::2] += 150
    return images.to(torch.uint8).numpy()


def add_files(folder):
    """A copy of qdeploy with two more files in it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.md")
    shutil.copytree(ROOT / "qdeploy", folder / "qdeploy", ignore=ignored)
    (folder / "qdeploy" / "methods" / "throwaway.py").write_text(METHOD)
    (folder / "qdeploy" / "datasets" / "two_words.py").write_text(DATASET)


def add_package(folder):
    """What pip leaves of a package with two modules."""
    (folder / "somebody_elses_method.py").write_text(METHOD)
    (folder / "somebody_elses_data.py").write_text(DATASET)
    installed = folder / "somebody_elses-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: somebody-elses\nVersion: 1.0\n"
    )
    (installed / "entry_points.txt").write_text(
        "[qdeploy.methods]\nthrowaway = somebody_elses_method:METHOD\n"
        "[qdeploy.datasets]\ntwo-words = somebody_elses_data:DATASET\n"
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    add_package(folder)
    return folder


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for split, count in [("train", 200), ("test", 20)]:
        np.save(tmp_path / f"{split}-images.npy", stripes(count))
        np.save(tmp_path / f"{split}-labels.npy", np.arange(count) % 2)
    return tmp_path / "recipe.toml"


def command(folder, *arguments):
    """What the qdeploy command prints with `folder` on Python's path."""
    done = subprocess.run(
        [sys.executable, "-m", "qdeploy", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def epochs(run):
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.timeout(400)
def test_a_method_and_a_data_set_train_and_ship(tmp_path, recipe, package):
    added = tmp_path / "added"
    add_files(added)
    for folder, run, devices in [(added, "ours", 1), (package, "theirs", 2)]:
        options = ("--device", "cpu", "--devices", devices, "-o", tmp_path / run)
        command(folder, "train", recipe, *options)
    command(added, "export", tmp_path / "ours")
    report = json.loads((tmp_path / "ours" / "report.json").read_text())
    assert report["method"] == "throwaway"
    assert report["dataset"] == {"title": "Shapes", "test_samples": 20}
    # Two processes with half of each batch train the network that one trains.
    alone, together = epochs(tmp_path / "ours"), epochs(tmp_path / "theirs")
    assert alone[-1]["test_top1"] > 0.9
    assert together[0]["train_loss"] == pytest.approx(alone[0]["train_loss"], rel=1e-3)


class TestAMethod:
    @pytest.fixture(autouse=True)
    def installed(self, package, monkeypatch):
        monkeypatch.syspath_prepend(str(package))

    def prepared(self):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        return qdeploy.prepare(network.eval(), torch.zeros(2, 1, 8, 8), "throwaway", 3, 4)

    def test_its_quantizer_takes_over_the_relu_in_front_of_it(self):
        prepared = self.prepared()
        assert any(isinstance(module, DeferredReLU) for module in prepared.modules())
        images = torch.randn(8, 1, 8, 8)
        qdeploy.calibrate(prepared, [images])
        assert torch.equal(prepared.train()(images), prepared.eval()(images))

    def test_it_is_calibrated_without_training_and_converted(self):
        prepared = self.prepared()
        images = torch.randn(8, 1, 8, 8)
        qdeploy.calibrate(prepared, [2 * images])
        twice = prepared.eval()(images)
        qdeploy.calibrate(prepared, [images], "minmax")
        again = prepared.eval()(images)
        assert not torch.equal(twice, again)
        torch.testing.assert_close(qdeploy.convert(prepared)(images), again, rtol=0, atol=1e-4)


class TestADataSet:
    def test_the_recipe_names_it_among_what_is_allowed(self, recipe, package, monkeypatch):
        monkeypatch.syspath_prepend(str(package))
        with pytest.raises(qdeploy.QdeployError, match=r"'two-words'\. Did you mean two-words\?"):
            Recipe.load(recipe, ["data.dataset=two-word"])

    def test_its_batches_are_what_it_reads(self, recipe, package, monkeypatch):
        monkeypatch.syspath_prepend(str(package))
        section = Recipe.load(recipe).data
        data = open_data(section, None, download=False, device="cpu", seed=0)
        [(images, labels)] = data.test.epoch(0)
        expected = (stripes(20) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)
        assert labels.tolist() == [0, 1] * 10
        assert (data.name, data.classes) == ("two-words", ("circle", "square"))
