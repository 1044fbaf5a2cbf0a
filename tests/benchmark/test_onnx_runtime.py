"""ONNX Runtime is needed by what runs files, and by nothing else; any build of it will do.

Each case is a Python of its own with other packages: links to those that are installed here, but for
ONNX Runtime.
"""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from graphs import float_network, write

ROOT = Path(__file__).parents[2]
TELEMETRY_FREE = {"CI", "GITHUB_ACTIONS", "TF_BUILD", "GITLAB_CI", "ORT_DISABLE_TELEMETRY"}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder of all installed packages but ONNX Runtime."""
    folder = tmp_path_factory.mktemp("packages")
    installed = [Path(entry) for entry in sys.path if Path(entry).name == "site-packages"]
    for package in (one for place in installed for one in place.iterdir()):
        if not package.name.startswith("onnxruntime") and not (folder / package.name).exists():
            (folder / package.name).symlink_to(package)
    return folder


@pytest.fixture
def python(others, tmp_path):
    """Runs code that sees ROOT, tmp_path / "own" and the other packages; HOME is an empty folder."""
    own, home = tmp_path / "own", tmp_path / "home"
    own.mkdir()
    home.mkdir()

    def run(code, *packages):
        path = os.pathsep.join(map(str, (ROOT, own, *packages, others)))
        kept = {name: value for name, value in os.environ.items() if name not in TELEMETRY_FREE}
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            env={**kept, "PYTHONPATH": path, "HOME": str(home)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def install(own, *names):
    """What pip leaves of builds of ONNX Runtime: their lists of files, beside the folder they share."""
    for name in names:
        info = own / f"{name.replace('-', '_')}-1.31.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
        (info / "RECORD").write_text("onnxruntime/__init__.py,,\n")


def link_here(own):
    (own / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)


TRAIN = """
import pkgutil, qdeploy, torch
from torch import nn
for module in pkgutil.walk_packages(qdeploy.__path__, "qdeploy."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
images = torch.randn(4, 3, 8, 8)
prepared = qdeploy.prepare(network, images, "lsq", 4, 4)
prepared(images).sum().backward()
qdeploy.calibrate(prepared, [images])
qdeploy.convert(prepared)
print(qdeploy.export(prepared, "model.onnx", images))
try:
    qdeploy.validate(prepared, "model.onnx", [images], "cpu")
except qdeploy.QdeployError as error:
    print(error)
"""

NOT_INSTALLED = (
    'this needs ONNX Runtime, which is not installed: pip install "qdeploy[cpu]", or with an NVIDIA GPU '
    'pip install "qdeploy[gpu]"'
)


def test_networks_are_prepared_trained_converted_and_exported_without_it(python):
    """Every module of the package is imported as well."""
    found = python(TRAIN)
    assert found.returncode == 0, found.stderr
    file, error = found.stdout.splitlines()
    assert file == "model.onnx"
    assert error.startswith(NOT_INSTALLED)


COMMANDS = """
import click
from qdeploy.cli import main
for line in (
    "train lenet5-digits-slb-w1a8 --set train.epochs=1 --set train.float_epochs=0 -o run",
    "inspect float.onnx",
    "export run",
    "benchmark float.onnx",
):
    command, *options = line.split()
    try:
        main([command, *options], standalone_mode=False)
        print(command)
    except click.ClickException as error:
        print(command, error.message)
"""


def test_a_recipe_trains_without_it_and_what_runs_files_says_what_to_install(python, tmp_path):
    write(float_network(), tmp_path / "float.onnx")
    found = python(COMMANDS)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert {"train", "inspect"} <= set(lines)
    assert lines[-2].startswith(f"export {NOT_INSTALLED}")
    assert lines[-1].startswith(f"benchmark {NOT_INSTALLED}")


OPEN = """
from qdeploy.benchmark import open_session
for _ in range(2):
    print(*open_session(open("float.onnx", "rb").read(), "cpu").providers)
"""
MEND = (
    "onnxruntime and onnxruntime-gpu are installed at once and have overwritten each other's files. "
    "Leave one of them: pip uninstall -y onnxruntime onnxruntime-gpu, and then pip install"
)


def test_two_builds_in_one_folder_are_told_once_with_the_way_out(python, tmp_path):
    link_here(tmp_path / "own")
    install(tmp_path / "own", "onnxruntime", "onnxruntime-gpu")
    write(float_network(), tmp_path / "float.onnx")
    found = python(OPEN)
    assert found.stdout.count("CPUExecutionProvider") == 2, found.stderr
    assert found.stderr.count(MEND) == 1
    asked = python("from qdeploy.benchmark.providers import absent; print(absent('cuda'))")
    assert MEND in asked.stdout


def test_builds_in_different_folders_overwrite_nothing(python, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link_here(tmp_path / "own")
    install(tmp_path / "own", "onnxruntime")
    install(elsewhere, "onnxruntime-gpu")
    found = python("from qdeploy.benchmark.onnx_runtime import builds; print(*builds())", elsewhere)
    assert found.stdout == "onnxruntime\n", found.stderr


@pytest.mark.parametrize("left", ["a folder", "a broken module"])
def test_what_an_uninstalled_build_took_along_is_installed_anew(left, python, tmp_path):
    (tmp_path / "own" / "onnxruntime" / "capi").mkdir(parents=True)
    if left == "a broken module":
        broken = "from onnxruntime.capi import _pybind_state"
        (tmp_path / "own" / "onnxruntime" / "__init__.py").write_text(broken)
    install(tmp_path / "own", "onnxruntime-gpu")
    found = python("from qdeploy.benchmark import this_machine; this_machine()")
    last = found.stderr.splitlines()[-1]
    assert "ONNX Runtime cannot be loaded (" in last
    assert "Install it anew: pip uninstall -y onnxruntime-gpu, and then pip install" in last


def test_cudnn_of_another_cuda_is_named(python, tmp_path):
    """PyTorch for another CUDA brings it, into the folder where ONNX Runtime's lies."""
    link_here(tmp_path / "own")
    install(tmp_path / "own", "nvidia-cudnn-cu11")
    found = python(
        "from qdeploy.benchmark.missing import foreign_cudnn; print(*foreign_cudnn('13'))"
    )
    assert "nvidia-cudnn-cu11" in found.stdout.split(), found.stderr


def test_no_telemetry_is_prepared_or_sent(python, tmp_path):
    """Since 1.29 an identifier and a queue of events lie in HOME, unless it is off from the start."""
    link_here(tmp_path / "own")
    write(float_network(), tmp_path / "float.onnx")
    found = python(OPEN)
    assert found.returncode == 0, found.stderr
    assert list((tmp_path / "home").rglob("*onnxruntime*")) == []
