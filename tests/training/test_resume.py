"""A run that is killed (SIGKILL, at any moment) and resumed ends as if nothing had been."""

import csv
import io
import itertools
import multiprocessing
import os
import pkgutil
import signal
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import pytest
import torch
from tiny_runs import tiny_fit, tiny_network

from qdeploy.training.checkpoint import load_checkpoint

processes = multiprocessing.get_context("forkserver")  # torch is imported once, then forked
processes.set_forkserver_preload(["qdeploy.training.loop"])

Moment = tuple[str, int]  # a function, and which of its calls kills the process
STEP = "qdeploy.tasks.classification.Classification.training_loss"  # 5 calls an epoch
TEST = "qdeploy.tasks.classification.Classification.loss"  # 5 calls an epoch
SAVE = "torch.save"  # leaves half a file; best.pt and last.pt in the first epoch
# scores.json and metrics.csv at the start; metrics.csv, best.pt, last.pt in the first epoch.
REPLACE = "os.replace"

MOMENTS = [
    *[(STEP, call) for call in (1, 4, 6, 13, 20)],
    *[(TEST, call) for call in (3, 8)],
    *[(SAVE, call) for call in (1, 2, 3, 4)],
    *[(REPLACE, call) for call in (1, 2, 3, 4, 5, 6, 7)],
]


def train(folder: Path, moment: Moment | None = None) -> None:
    if moment is None:
        tiny_fit(tiny_network(), folder, resume=True)
    else:
        with dying_at(*moment):
            tiny_fit(tiny_network(), folder, resume=True)


def dying_at(function: str, call: int) -> Any:
    """Patches `function` so that its `call`-th call (from 1) kills this process."""
    original = pkgutil.resolve_name(function)
    calls = itertools.count(1)

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            if function == SAVE:
                save_half(original, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    return mock.patch(function, counted)


def save_half(save: Any, content: object, file: BinaryIO) -> None:
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()


def train_in_a_process(folder: Path, moment: Moment | None = None) -> int | None:
    process = processes.Process(target=train, args=(folder, moment))
    process.start()
    process.join(timeout=600)
    return process.exitcode


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bitwise the same checkpoints and figures; only the wall time may be another."""
    for name in ("last.pt", "best.pt"):
        ours, theirs = load_checkpoint(folder / name), load_checkpoint(expected / name)
        for part in ("state", "shipped", "optimizer", "scaler"):
            torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=0, atol=0)
    assert figures(folder / "metrics.csv") == figures(expected / "metrics.csv")


def figures(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train_in_a_process(folder) == 0
    assert len(figures(folder / "metrics.csv")) == 4
    return folder


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m[0].split('.')[-1]}-{m[1]}")
def test_killed_once(tmp_path: Path, uninterrupted: Path, moment: Moment) -> None:
    assert train_in_a_process(tmp_path, moment) == -signal.SIGKILL
    assert train_in_a_process(tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted)
    assert not list(tmp_path.glob("*.tmp"))


def test_killed_again_and_again(tmp_path: Path, uninterrupted: Path) -> None:
    for moment in [(REPLACE, 2), (SAVE, 2), (STEP, 8), (SAVE, 1), (REPLACE, 3), (TEST, 2)]:
        assert train_in_a_process(tmp_path, moment) == -signal.SIGKILL
    assert train_in_a_process(tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted)
