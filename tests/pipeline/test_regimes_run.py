"""Regimes of a network and of a recipe, distillation and its teacher, in whole runs."""

import pytest
import torch
from command_line import assert_same_checkpoint, checkpoint, content, fails, metrics, succeeds

from qdeploy.network_loading import load_network
from qdeploy.pipeline import train as pipeline
from qdeploy.recipe import Recipe
from qdeploy.training.console import Console

NETWORK = """
from torch import nn

def plain():
    conv = nn.Conv2d(1, 4, 5, stride=3, bias=False)
    pool = nn.AdaptiveAvgPool2d(4)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.Linear(64, 10))

def with_regimes():
    network = plain()
    network.regime = [
        {'epoch': 0, 'optimizer': 'SGD', 'lr': 1e-1, 'weight_decay': 5e-4, 'momentum': 0.9},
        {'step': 5, 'optimizer': 'Adam', 'lr': 1e-3, 'weight_decay': 0},
    ]
    network.data_regime = [
        {'epoch': 0, 'input_size': 20, 'batch_size': 300},
        {'epoch': 1, 'input_size': 28, 'batch_size': 200},
    ]
    return network

def with_a_word():
    network = plain()
    network.regime = "fast"
    return network

def with_a_misspelling():
    network = plain()
    network.data_regime = ({'epoch': 0, 'batchsize': 20},)
    return network

class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = plain()

    def forward(self, x):
        return self.network(x[:, :, ::2, ::2] if x.shape[2] > 30 else x)

def deciding():
    return Deciding()
"""
RECIPE = """
[model]
network = "network.py:{function}"
[data]
dataset = "digits"
batch_size = 500
[quantize]
method = "simqat"
[train]
epochs = 3
"""
TRAIN_REGIME = """
[[train.regime]]
epoch = 0
optimizer = "sgd"
lr = 0.1
weight_decay = 5e-4
momentum = 0.9
[[train.regime]]
step = 5
optimizer = "adam"
lr = 0.001
weight_decay = 0
"""
DATA_REGIME = """
[[data.regime]]
epoch = 0
image_size = 20
batch_size = 300
[[data.regime]]
epoch = 1
image_size = 28
batch_size = 200
"""
DISTILLED = """
distill = 0.8
float_epochs = 1
"""


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of one of the networks and returns its path."""
    (tmp_path / "network.py").write_text(NETWORK)

    def write(function, more=""):
        file = tmp_path / "mine.toml"
        file.write_text(RECIPE.format(function=function) + more)
        return file

    return write


def test_a_network_s_regimes_are_those_of_the_recipe_that_says_the_same(recipe, tmp_path):
    log = succeeds("train", recipe("with_regimes"), "-o", tmp_path / "network")
    succeeds("train", recipe("plain", TRAIN_REGIME + DATA_REGIME), "-o", tmp_path / "recipe")

    lines = metrics(tmp_path / "network")
    assert [line["steps"] for line in lines] == [5, 13, 21]  # 1437 images by 300, 200, 200
    assert [line["lr"] for line in lines] == [0.1, 0.001, 0.001]
    expected = checkpoint(tmp_path / "recipe" / "last.pt")["state"]
    found = checkpoint(tmp_path / "network" / "last.pt")["state"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "[train] from step 5: optimizer = adam, lr = 0.001, weight_decay = 0.0" in log
    assert "[data] from epoch 0: batch_size = 300, image_size = 20" in log


def test_the_recipe_s_regime_wins_over_that_of_the_same_section(recipe, tmp_path):
    more = "[[train.regime]]\nepoch = 0\nlr = 0.02\n"
    succeeds("train", recipe("with_regimes", more), "-o", tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["lr"] for line in lines] == [0.02] * 3
    assert [line["steps"] for line in lines] == [5, 13, 21]


@pytest.mark.parametrize(
    ("function", "more", "message"),
    [
        ("with_a_word", "", "the regime of Sequential is 'fast'; it must be a list of dicts"),
        (
            "with_a_misspelling",
            "",
            "network.py:with_a_misspelling' brings along: unknown key data.regime.0.batchsize. "
            "Did you mean data.regime.0.batch_size? Allowed in [data.regime.0]: ",
        ),
        (
            "plain",
            "[[data.regime]]\nepoch = 9\nimage_size = 3\n",
            "cannot take images of shape [1, 3, 3] of scikit-learn digits",
        ),
        (
            "deciding",
            "[[data.regime]]\nepoch = 1\nimage_size = 40\n",
            "cannot take images of shape [1, 40, 40] of scikit-learn digits: QdeployError: the network "
            "does something else for inputs of this size",
        ),
        (
            "plain",
            "[[train.regime]]\nstep = 4\nlr = 0.1\n[[train.regime]]\nepoch = 1\nlr = 0.2\n",
            "the regime of [train] has epoch 1 behind step 4, which begin at steps 3 and 4: list",
        ),
        ("plain", "distill = 0.5", "train.distill needs a trained float network to learn from: "),
    ],
)
def test_what_cannot_be_is_said_before_there_is_a_run(recipe, tmp_path, function, more, message):
    file = recipe(function, more)
    before = content(tmp_path)
    assert message in fails("train", file, "-o", tmp_path / "run")
    assert content(tmp_path).keys() - before.keys() <= set(tmp_path.rglob("*.pyc"))


def stop_after(patch, epoch):
    """The next run gets Ctrl-C after this epoch of its quantized part."""
    log = Console.log

    def stopping(console, text):
        log(console, text)
        if text.startswith(f"epoch   {epoch} ") and "float" not in str(console._log):
            raise KeyboardInterrupt

    patch.setattr(Console, "log", stopping)


@pytest.mark.parametrize("epoch", [1, 2])
def test_under_regimes_and_a_teacher_a_resumed_run_ends_in_the_same_weights(
    recipe, tmp_path, monkeypatch, epoch
):
    file = recipe("with_regimes", DISTILLED)
    succeeds("train", file, "-o", tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(Recipe.load(file), tmp_path / "cut", device="cpu")
    assert len(metrics(tmp_path / "cut")) == epoch
    file.unlink()
    (tmp_path / "network.py").unlink()  # the run has its own copy, with the regimes in it
    succeeds("train", "--resume", "-o", tmp_path / "cut")
    assert_same_checkpoint(tmp_path / "cut" / "last.pt", tmp_path / "whole" / "last.pt")


@pytest.mark.parametrize("start", ["float_epochs", "weights"])
def test_the_teacher_is_the_float_network_that_the_run_started_from(
    recipe, tmp_path, monkeypatch, start
):
    succeeds("train", recipe("plain", DISTILLED), "-o", tmp_path / "first")
    weights = checkpoint(tmp_path / "first" / "float" / "last.pt")["state"]
    if start == "weights":
        torch.save(weights, tmp_path / "weights.pt")
    given = ["--set", f"model.weights={tmp_path / 'weights.pt'}", "--set", "train.float_epochs=0"]
    teachers = []
    fit = pipeline.fit

    def spy(*arguments, teacher, **options):
        teachers.append(teacher and teacher.state_dict())
        return fit(*arguments, teacher=teacher, **options)

    monkeypatch.setattr(pipeline, "fit", spy)
    more = given if start == "weights" else ()
    succeeds("train", recipe("plain", DISTILLED), "-o", tmp_path / "run", *more)
    assert teachers[:-1] == [None] * (start == "float_epochs")  # the float epochs have none
    torch.testing.assert_close(teachers[-1], weights, rtol=0, atol=0)
    assert Recipe.load(tmp_path / "first" / "float" / "recipe.toml").train.distill == 0


@pytest.mark.parametrize(("delay", "warned"), [(9, True), (8, False)])
def test_a_delay_that_outlasts_the_run_is_told(recipe, tmp_path, delay, warned):
    file = recipe("plain", f"[quantize.options]\nquant_delay = {delay}\n")
    log = succeeds("train", file, "-o", tmp_path / "run")  # 3 epochs of 3 steps
    assert (f"quant_delay is {delay} steps and the whole run has 9" in log) == warned


@pytest.mark.parametrize(
    ("start", "warned"),
    [("epoch = 3", True), ("step = 9", True), ("epoch = 2", False), ("step = 8", False)],
)
def test_a_phase_that_never_begins_is_told(recipe, tmp_path, start, warned):
    log = succeeds(
        "train", recipe("plain", f"[[train.regime]]\n{start}\nlr = 0.01\n"), "-o", tmp_path / "run"
    )
    told = f"the phase of [train] from {start.replace(' =', '')} never begins: the run has 3 epochs of 9"
    assert (told in log) == warned


@pytest.mark.parametrize(("epochs", "warned"), [(1, True), (5, False)])
def test_a_search_that_ends_before_it_begins_is_told(recipe, tmp_path, epochs, warned):
    more = "[quantize.options]\nquant_delay = 0\n"
    arguments = (
        "--set",
        "quantize.method=slb",
        "--set",
        "quantize.weight_bits=1",
        "--epochs",
        epochs,
    )
    log = succeeds("train", recipe("plain", more), *arguments, "-o", tmp_path / "run")
    assert ("the search for weights ends before the first" in log) == warned


def test_a_run_goes_on_without_the_file_of_its_float_weights(recipe, tmp_path):
    file = recipe("plain")
    network = load_network(f"{tmp_path / 'network.py'}:plain", {})
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    given = ("--set", f"model.weights={tmp_path / 'weights.pt'}")
    succeeds("train", file, *given, "-o", tmp_path / "run")
    (tmp_path / "weights.pt").unlink()
    succeeds("train", "--resume", "-o", tmp_path / "run")
