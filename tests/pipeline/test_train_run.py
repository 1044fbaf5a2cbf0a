"""train: what a run folder holds, and how a run goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
import torch
from command_line import (
    QUICK,
    RECIPE,
    assert_same_checkpoint,
    checkpoint,
    content,
    fails,
    metrics,
    succeeds,
)
from published import write_mnist

from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder

SETTINGS = ("--epochs", "5", "--set", "train.float_epochs=3", "--set", "data.batch_size=200")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    succeeds("train", RECIPE, *SETTINGS, "-o", run)
    return run


def assert_same_run(run, expected):
    for name in ("last.pt", "best.pt", "float/last.pt", "float/best.pt"):
        assert_same_checkpoint(run / name, expected / name)
    for name in ("recipe.toml", "network.py"):
        assert (run / name).read_bytes() == (expected / name).read_bytes()
    assert len(metrics(run)) == 5
    assert not list(run.rglob("*.tmp"))


@pytest.fixture
def run(uninterrupted, tmp_path):
    """A copy, to be changed."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


class TestTheRunFolder:
    def test_it_holds_the_files_of_the_architecture(self, uninterrupted):
        run = RunFolder(uninterrupted)
        lite = run.model.with_suffix(".tflite")
        made_by_export = {run.model, lite, run.float_model, *run.reports}
        files = {file for file in uninterrupted.iterdir() if file.is_file()}
        of_others = {run.survey, run.task, run.data}  # of image files, and of the user's own code
        assert files == set(run.all_files) - made_by_export - of_others

    def test_the_recipe_is_as_it_was_trained(self, uninterrupted):
        recipe = Recipe.load(uninterrupted / "recipe.toml")
        assert recipe == Recipe.load(
            RECIPE, ["train.epochs=5", "train.float_epochs=3", "data.batch_size=200"]
        )

    def test_the_network_is_the_zoos_source(self, uninterrupted):
        source = Path(__file__).parents[2] / "models" / "lenet5.py"
        assert (uninterrupted / "network.py").read_bytes() == source.read_bytes()

    def test_the_metrics_count_the_steps(self, uninterrupted):
        steps = -(-1437 // 200)
        assert [row["steps"] for row in metrics(uninterrupted)] == [steps * n for n in range(1, 6)]
        assert len(metrics(uninterrupted / "float")) == 3

    def test_the_log_shows_every_setting(self, uninterrupted):
        log = (uninterrupted / "log.txt").read_text()
        assert "conv1: slb w1a8 (" in log
        assert "fc3: simqat w7a8 (" in log
        assert "t_start_time=0.2" in log
        assert "scikit-learn digits, 1437 images" in log

    def test_quantization_starts_from_the_float_weights(self, uninterrupted):
        trained = checkpoint(uninterrupted / "float" / "last.pt")["state"]
        latent = checkpoint(uninterrupted / "last.pt")["state"]["conv2.weight"]
        same = torch.sign(latent) == torch.sign(trained["conv2.weight"])
        assert same.float().mean() > 0.7, "chance is 0.5"


def test_the_data_root_is_remembered(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data" / "mnist")
    monkeypatch.chdir(tmp_path)
    quick = ["lenet5-mnist-float", "--epochs", 2, "--set", "data.batch_size=4"]
    succeeds("train", *quick, "--data-root", "data", "-o", "run")
    recipe = tomli.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert recipe["data"]["root"] == str(tmp_path / "data")
    expected = checkpoint(tmp_path / "run" / "last.pt")

    # The data moved: the run is told where, and goes on.
    (tmp_path / "run" / "last.pt").unlink()
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    resume = ["--resume", "-o", tmp_path / "run"]
    assert f"Put them all into one of {tmp_path / 'data'}" in fails("train", *resume)
    succeeds("train", *quick, *resume, "--data-root", ".")
    torch.testing.assert_close(
        checkpoint(tmp_path / "run" / "last.pt")["state"], expected["state"], rtol=0, atol=0
    )
    assert str(tmp_path / "moved") in (tmp_path / "run" / "recipe.toml").read_text()


class TestResume:
    @pytest.mark.parametrize("phase", ["float/log.txt", "log.txt"])
    def test_after_ctrl_c_it_ends_as_if_nothing_had_been(self, phase, uninterrupted, tmp_path):
        run = tmp_path / "run"
        output = interrupt([RECIPE, *SETTINGS, "-o", run], run / phase)
        folder = (run / phase).parent
        assert f"stopped: {folder} holds " in output
        assert f"`qdeploy train -o {run} --resume` goes on from there" in output
        assert "interrupted" in output
        assert "Traceback" not in output
        assert len(metrics(folder)) == 1
        assert "resumed after epoch 1 of" in succeeds("train", "--resume", "-o", run)
        assert_same_run(run, uninterrupted)

    @pytest.mark.parametrize(
        "lost",
        [
            "last.pt best.pt metrics.csv network.py log.txt training.html float",
            "last.pt best.pt metrics.csv network.py log.txt training.html float/last.pt",
            "last.pt",
        ],
        ids=["the start", "the float epochs", "the first epoch"],
    )
    def test_after_a_kill_at(self, lost, run, uninterrupted):
        for name in lost.split():
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        succeeds("train", "--resume", "-o", run)
        assert_same_run(run, uninterrupted)

    def test_metrics_that_cannot_be_read_are_written_anew(self, run, uninterrupted):
        """The error for such a file, of `qdeploy report` say, tells users to resume."""
        (run / "last.pt").unlink()
        (run / "metrics.csv").write_text("torn")
        succeeds("train", "--resume", "-o", run)
        assert_same_run(run, uninterrupted)

    @pytest.mark.parametrize("named", [(), (RECIPE, *SETTINGS)], ids=["", "its recipe named"])
    def test_of_a_finished_run_changes_nothing(self, named, run, uninterrupted):
        assert "resumed after epoch 5 of 5" in succeeds("train", *named, "--resume", "-o", run)
        assert_same_run(run, uninterrupted)

    def test_it_starts_where_there_is_nothing_yet_if_the_recipe_is_named(self, tmp_path):
        run = tmp_path / "run"
        succeeds(
            "train", RECIPE, "--epochs", 1, "--set", "train.float_epochs=0", "--resume", "-o", run
        )
        assert len(metrics(run)) == 1
        assert not (run / "float").exists()

    def test_without_a_run_or_a_recipe_it_is_an_error(self, tmp_path):
        message = fails("train", "--resume", "-o", tmp_path / "run")
        assert f"{tmp_path / 'run'} is no run: it has no recipe.toml" in message
        assert content(tmp_path) == {}

    def test_a_changed_recipe_is_refused_by_its_keys(self, run):
        before = content(run)
        message = fails(
            "train", RECIPE, *SETTINGS, "--resume", "-o", run, "--set", "train.lr=0.2",
            "--set", "quantize.layers.fc1.weight_bits=2", "--set", "quantize.method=simqat",
        )  # fmt: skip
        assert "holds a run of another recipe: " in message
        assert "quantize.method is 'slb' in the run, given is 'simqat'" in message
        assert "quantize.layers.fc1 is None in the run, given is {'weight_bits': 2}" in message
        assert "train.lr is 0.05 in the run, given is 0.2" in message
        assert "train.epochs" not in message
        assert f"`qdeploy train --resume -o {run}`" in message
        assert content(run) == before

    def test_overrides_count_without_a_recipe_too(self, run):
        message = fails("train", "--resume", "-o", run, "--epochs", 9)
        assert "train.epochs is 5 in the run, given is 9" in message

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("last.pt", "last.pt is truncated"),
            ("float/last.pt", "float/last.pt is truncated"),
        ],
    )
    def test_a_truncated_checkpoint_is_named(self, run, name, expected):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
        assert expected in fails("train", "--resume", "-o", run)
        assert (run / name).read_bytes() == whole[: len(whole) // 2]

    def test_a_checkpoint_of_another_method_is_named(self, run):
        shutil.copy(run / "float" / "last.pt", run / "last.pt")
        message = fails("train", "--resume", "-o", run)
        assert "is a checkpoint of network lenet5, method float" in message
        assert "this run is of network lenet5, method slb" in message

    def test_it_needs_the_folder(self):
        assert "--resume needs the run folder" in fails("train", "--resume", code=2)

    def test_force_contradicts_it(self, run):
        before = content(run)
        message = fails("train", "--resume", "--force", "-o", run, code=2)
        assert "--resume goes on with a run, --force starts it anew: give one" in message
        assert content(run) == before


class TestAnExistingFolder:
    def test_it_is_refused_without_resume_or_force(self, uninterrupted):
        before = content(uninterrupted)
        message = fails("train", RECIPE, *QUICK, "-o", uninterrupted)
        assert f"the run folder {uninterrupted} is not empty; --resume" in message
        assert content(uninterrupted) == before

    def test_force_starts_anew(self, run):
        (run / "report.json").write_text("of the old run")
        (run / "notes.txt").write_text("mine")
        succeeds(
            "train", RECIPE, "--epochs", 1, "--set", "train.float_epochs=0", "--force", "-o", run
        )
        assert len(metrics(run)) == 1
        assert not (run / "report.json").exists()
        assert not (run / "float" / "last.pt").exists()
        assert (run / "notes.txt").read_text() == "mine"


INTERRUPTING = """
import signal, sys
from qdeploy.cli import main
from qdeploy.training.console import Console

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
log = Console.log

def interrupting(console, text):
    log(console, text)
    if text.startswith("epoch   1") and str(console._log) == sys.argv[1]:
        signal.raise_signal(signal.SIGINT)

Console.log = interrupting
main(sys.argv[2:])
"""


def interrupt(arguments, log):
    """Trains in a process that gets Ctrl-C after the first epoch in `log`; what it printed."""
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTING, log, "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 130, process.stderr
    return process.stdout + process.stderr
