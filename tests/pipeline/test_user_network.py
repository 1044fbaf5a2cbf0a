"""A network of the user's own: from a file, a package, or Python."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import content, digits, fails, logits, metrics, succeeds

import qdeploy
from qdeploy.pipeline.trained_run import load_run
from qdeploy.run import RunFolder

BLOCKS = """
from torch import nn

def block(inputs, outputs):
    conv = nn.Conv2d(inputs, outputs, 5, stride=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
"""
NETWORK = """
def small(width=5):
    return nn.Sequential(block(1, width), nn.Flatten(), nn.Linear(width * 64, 10))
"""
RECIPE = """
[model]
network = "{network}"

[data]
dataset = "digits"
batch_size = 200

[quantize]
method = "simqat"

[train]
epochs = 2
"""


def recipe(folder, network):
    file = folder / "small.toml"
    file.write_text(RECIPE.format(network=network))
    return file


@pytest.fixture
def trained(tmp_path):
    """A run of a file without neighbours."""
    (tmp_path / "alone.py").write_text(BLOCKS + NETWORK)
    succeeds("train", recipe(tmp_path, "alone.py:small"), "-o", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_exported_from_its_own_copy_when_the_file_is_deleted(trained):
    (trained.parent / "alone.py").unlink()
    printed = json.loads(succeeds("export", trained, "--json"))
    images, labels = digits(0.3054, 0.3247)
    top1 = (logits(trained / "model.onnx", images).argmax(1) == labels).mean()
    assert printed["accuracy"]["onnx"]["top1"] == pytest.approx(top1, abs=0.01)
    assert printed["accuracy"]["trained"]["top1"] == metrics(trained)[-1]["test_top1"]
    assert [layer["weights"] for layer in printed["layers"]] == [5 * 25, 5 * 64 * 10]


def test_the_file_names_no_folder_of_the_machine_it_was_made_on(trained):
    again = trained.parent / "again"
    (trained.parent / "float.toml").write_text(
        (trained.parent / "small.toml").read_text().replace('method = "simqat"', 'method = "float"')
    )
    start = ["--data-root", trained.parent, "-o", trained.parent / "float"]
    succeeds("train", trained.parent / "float.toml", *start)
    weights = f"model.weights={trained.parent / 'float' / 'last.pt'}"
    succeeds("train", trained.parent / "small.toml", "--set", weights, *start[:2], "-o", again)
    succeeds("export", again, "--samples", 10)
    assert str(trained.parent) in (again / "recipe.toml").read_text()
    file = (again / "model.onnx").read_bytes()
    assert str(trained.parent).encode() not in file
    assert b'network = "alone.py:small"' in file
    assert b'weights = "last.pt"' in file


def test_a_run_is_resumed_from_its_own_copy_when_the_file_is_changed(trained):
    (trained.parent / "alone.py").write_text(BLOCKS + NETWORK.replace("width=5", "width=9"))
    expected = weights_of(trained)
    (trained / "last.pt").unlink()
    succeeds("train", "--resume", "-o", trained)
    assert (trained / "network.py").read_text() == BLOCKS + NETWORK
    torch.testing.assert_close(weights_of(trained), expected, rtol=0, atol=0)


def weights_of(run):
    return torch.load(run / "last.pt", weights_only=True)["state"]


def test_a_run_whose_file_imports_a_neighbour_is_loaded_after_a_change(tmp_path):
    (tmp_path / "blocks_beside.py").write_text(BLOCKS)
    text = "from torch import nn\nfrom blocks_beside import block\n" + NETWORK
    (tmp_path / "network.py").write_text(text)
    succeeds("train", recipe(tmp_path, "network.py:small"), "-o", tmp_path / "run", "--epochs", 1)
    (tmp_path / "network.py").write_text("broken(")
    sys.modules.pop("blocks_beside")
    trained = load_run(RunFolder(tmp_path / "run"), "last", None, "cpu")
    images, labels = digits(0.3054, 0.3247)
    top1 = (trained.network.eval()(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    assert top1 == pytest.approx(metrics(tmp_path / "run")[-1]["test_top1"], abs=0.01)


def test_a_network_of_a_package(tmp_path, monkeypatch):
    (tmp_path / "small_package").mkdir()
    (tmp_path / "small_package" / "networks.py").write_text(BLOCKS + NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    given = recipe(tmp_path, "small_package.networks:small")
    succeeds("train", given, "-o", tmp_path / "run", "--set", "model.options.width=3")
    assert (tmp_path / "run" / "network.py").read_text() == BLOCKS + NETWORK
    assert any(value.shape == (3, 1, 5, 5) for value in weights_of(tmp_path / "run").values())


def test_pretrained_weights_are_the_start_and_the_baseline(trained, tmp_path):
    # Epochs at a learning rate of nothing leave the weights that were given.
    weights = tmp_path / "weights.pt"
    network = small_network(tmp_path)
    torch.save(network.state_dict(), weights)
    still = ["--epochs", 1, "--set", "train.lr=1e-30", "--set", f"model.weights={weights}"]
    run = tmp_path / "started"
    succeeds("train", trained / "recipe.toml", *still, "-o", run)
    assert any(torch.equal(value, network[0][0].weight) for value in weights_of(run).values())
    printed = json.loads(succeeds("export", run, "--json"))
    images, labels = digits(0.3054, 0.3247)
    scores = logits(run / "float.onnx", images)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert printed["accuracy"]["float"]["top1"] == (scores.argmax(1) == labels).mean()


def small_network(folder):
    torch.manual_seed(42)
    return qdeploy.load_network(f"{folder / 'alone.py'}:small")


API = """
import torch, qdeploy
from qdeploy.models.lenet5 import lenet5
torch.manual_seed(0)
batches = [(torch.randn(8, 1, 28, 28), torch.zeros(8)) for _ in range(3)]
prepared = qdeploy.prepare(lenet5(), batches[0][0], "slb", weight_bits=1, act_bits=8)
qdeploy.calibrate(prepared, batches)
path = qdeploy.export(prepared, "model.onnx", batches[0][0])
torch.save([batches[0][0], prepared.eval()(batches[0][0]).detach()], "expected.pt")
"""


def test_the_library_in_five_lines(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", API], cwd=tmp_path, check=True, env=environment)
    images, expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    found = logits(tmp_path / "model.onnx", images.numpy())
    np.testing.assert_allclose(found, expected.numpy(), atol=0.02 * expected.abs().max().item())
    assert (tmp_path / "model.onnx").stat().st_size < 70_000


HEAD = "import torch\nfrom torch import nn\n"
CONTROL_FLOW = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.fc(x.flatten(1))
"""
ASSERTING = """
class Net(nn.Module):
    def forward(self, x):
        assert x.shape[1] == 3, "colours, please"
        return x
"""
TUPLE = """
class Net(nn.Module):
    def forward(self, x):
        return x, x
"""
WIDE = "def Net(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 7))"
NO_LAYERS = "def Net(): return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTROL_FLOW, r"torch.fx cannot trace Net: .*line 9: if x.sum\(\) > 0.*Ways out: "),
        (
            ASSERTING,
            r"cannot take images of shape \[1, 28, 28\] of scikit-learn digits: AssertionError",
        ),
        (TUPLE, r"gives tuple for 2 inputs, .*so it must give \[2, 10\]"),
        (WIDE, r"gives \[2, 7\] for 2 inputs, and there are 10 classes"),
        (NO_LAYERS, "has no layer to quantize"),
        ("def Net(): return 3", "returned int; it must return a torch.nn.Module"),
        ("def Net(): raise OSError('no disk')", "raised OSError: no disk"),
        ("def Net(:", "cannot be loaded: SyntaxError"),
        ("Nett = 3", "has no function 'Net'"),
        (None, r"there is no network file .*network\.py"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_before_there_is_a_folder(tmp_path, text, message):
    if text is not None:
        (tmp_path / "network.py").write_text(HEAD + text)
    given = recipe(tmp_path, "network.py:Net")
    before = content(tmp_path)
    found = fails("train", given, "-o", tmp_path / "run")
    assert re.search(message, found), found
    left = {file: data for file, data in content(tmp_path).items() if file.suffix != ".pyc"}
    assert left == before
    assert not (tmp_path / "run").exists()
