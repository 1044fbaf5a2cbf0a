"""Each example runs in small, and ends in a file that is proven and as accurate as it says."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
PACKAGES = {
    "plain_torch": "torch",
    "lightning_module": "pytorch_lightning",
    "hugging_face": "transformers",
    "accelerate_loop": "accelerate",
    "timm_style": "timm",
}


@pytest.fixture
def example(monkeypatch, tmp_path):
    """The example of that name, as a module; what it writes is in tmp_path."""
    # tests/datasets would pass for Hugging Face's package of that name.
    path = [str(EXAMPLES), *(entry for entry in sys.path if Path(entry) != TESTS)]
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.chdir(tmp_path)

    def imported(name):
        try:
            importlib.import_module(PACKAGES[name])
        except (ImportError, RuntimeError) as error:  # of timm where torchvision does not fit torch
            pytest.skip(f"{PACKAGES[name]} cannot be imported: {error}")
        return importlib.import_module(name)

    return imported


def check(printed, file):
    """No code differs, and the accuracy that is printed is that of the file."""
    assert re.search(r"^0 of [\d,]+ codes differ in \d+ tensors", printed, re.MULTILINE), printed
    shares = re.search(r"^top-1: float (.*)%, trained (.*)%, file (.*)%$", printed, re.MULTILINE)
    in_float, trained, shipped = map(float, shares.groups())
    assert shipped == pytest.approx(100 * top1(file), abs=0.005)
    assert min(in_float, trained, shipped) > 90


def top1(file):
    """Share of the test digits that the file puts into their class."""
    images, labels = (x.numpy() for x in importlib.import_module("digits").digits()[1].tensors)
    (logits,) = onnxruntime.InferenceSession(file).run(None, {"input": images})
    return np.mean(logits.argmax(1) == labels)


def test_every_example_is_run_here():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*PACKAGES, "digits"}


@pytest.mark.parametrize("name", PACKAGES)
def test_an_example_ends_in_a_proven_file(name, example, tmp_path, capfd):
    example(name).main(epochs=4)
    check(capfd.readouterr().out, tmp_path / "digits.onnx")


def test_autocast_ends_in_a_proven_file(example, tmp_path, capfd):
    example("plain_torch").main(epochs=4, autocast=True)
    check(capfd.readouterr().out, tmp_path / "digits.onnx")


def test_two_processes_end_in_a_proven_file(example, tmp_path):
    example("accelerate_loop")
    program = tmp_path / "program.py"
    program.write_text("import accelerate_loop\n\naccelerate_loop.main(epochs=2)\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    paths = os.pathsep.join(map(str, [EXAMPLES, TESTS.parent]))
    done = subprocess.run(
        [*launch, program],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1:") == 1
    check(done.stdout, tmp_path / "digits.onnx")
