"""train --devices 2: the command starts the processes, and one of them speaks and writes."""

import os
import subprocess
import sys

from command_line import RECIPE, checkpoint, metrics


def test_two_processes_train_one_run(tmp_path):
    run = tmp_path / "run"
    settings = ["train.float_epochs=0", "data.batch_size=200"]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "qdeploy", "train", RECIPE, "--epochs", "1"),
            *(part for setting in settings for part in ("--set", setting)),
            *("--device", "cpu", "--devices", "2", "-o", run),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch   1") == ended.stdout.count(f"trained: {run}") == 1
    assert ended.stderr == ""
    assert len(metrics(run)) == len(checkpoint(run / "last.pt")["history"]) == 1
