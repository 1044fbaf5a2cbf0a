"""The qdeploy command in this process, and what its runs are compared with."""

import csv
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from qdeploy.cli import main

RECIPE = "lenet5-digits-slb-w1a8"
QUICK = ("--epochs", "2", "--set", "train.float_epochs=1")

# Before click 8.2 errors stand among what is printed, unless asked not to.
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
RUNNER = CliRunner(**APART)


def succeeds(*arguments):
    """What the command prints."""
    result = RUNNER.invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def fails(*arguments, code=1):
    """The error message of a command that ends as it should: no traceback, that exit code."""
    result = RUNNER.invoke(main, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), f"{result.output}\n{result.exception!r}"
    assert result.exit_code == code, result.output
    return re.sub(r"\s+", " ", result.stderr)


def train_in_two_processes(*arguments):
    """What `qdeploy train` printed, as the shell starts it, with two processes on the CPU."""
    command = [
        sys.executable,
        "-m",
        "qdeploy",
        "train",
        *arguments,
        "--device",
        "cpu",
        "--devices",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def content(folder):
    """Every file below a folder, with its bytes."""
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def metrics(run):
    """The lines of metrics.csv as numbers."""
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def checkpoint(file):
    """What a checkpoint holds; the wall time of its epochs is another in each run."""
    found = torch.load(file, weights_only=True)
    for record in found["history"]:
        record["seconds"] = None
    return found


def assert_same_checkpoint(file, other):
    torch.testing.assert_close(
        drop_none(checkpoint(file)), drop_none(checkpoint(other)), rtol=0, atol=0
    )


def drop_none(value):
    """The same without None and words, which assert_close does not take, but with their names."""
    if isinstance(value, dict):
        return {str(key): drop_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [drop_none(item) for item in value]
    return value if isinstance(value, torch.Tensor) else torch.tensor(list(repr(value).encode()))


def digits(mean, std):
    """The held-out digits, normalised [360, 1, 28, 28], and their labels; in NumPy alone.

    68 of the pixels lie on a tie between two greys, which PyTorch rounds otherwise.
    """
    scans, labels = load_digits(return_X_y=True)
    _, scans, _, labels = train_test_split(
        scans, labels, test_size=0.2, stratify=labels, random_state=0
    )
    place = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    low = np.floor(place).astype(int)
    weights = np.zeros((28, 8))
    weights[np.arange(28), low] += 1 - (place - low)
    weights[np.arange(28), np.minimum(low + 1, 7)] += place - low
    pixels = np.round(weights @ (scans.reshape(-1, 8, 8) * 255 / 16) @ weights.T)
    mean, std = 255 * np.float32(mean), 255 * np.float32(std)
    return (pixels[:, None].astype(np.float32) - mean) / std, labels


def logits(model, images):
    """Of an ONNX file, or its bytes, on ONNX Runtime."""
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": images})[0]
