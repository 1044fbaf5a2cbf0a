"""The package of docs/add-a-method.md, installed as a reader would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example-method"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs python with the package installed beside qdeploy."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "sources")
    site = folder / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*install, "--target", site, folder / "sources")
    return run


def test_its_method_is_listed(python):
    listed = python("-c", "from qdeploy.cli import main; main(['methods'])")
    line = next(line for line in listed.splitlines() if line.startswith("binaryconnect "))
    assert "[bits of weights 1; of activations 8 or float]" in line


def test_the_contract_tests_find_it_and_pass(python):
    chosen = "binaryconnect and (conv2d-groups or file_agrees or lowers)"
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "-k", chosen]
    printed = python("-m", "pytest", *options, "tests/methods/test_contract.py")
    assert int(printed.split(" passed")[0].split()[-1]) >= 10


@pytest.mark.parametrize("file", ["pyproject.toml", "qdeploy_binaryconnect.py"])
def test_the_page_shows_the_very_files(file):
    assert (EXAMPLE / file).read_text() in (ROOT / "docs" / "add-a-method.md").read_text()
