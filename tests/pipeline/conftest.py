"""One short run, trained and exported once."""

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import QUICK, RECIPE, succeeds

sys.path.append(str(Path(__file__).parents[1] / "data"))  # published.py


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A run folder with its report; tests that change it work on a copy."""
    run = tmp_path_factory.mktemp("exported") / "run"
    succeeds("train", RECIPE, *QUICK, "-o", run)
    succeeds("export", run)
    return run


@pytest.fixture(scope="session")
def report(exported):
    return json.loads((exported / "report.json").read_text())
