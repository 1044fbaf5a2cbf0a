"""The wheel holds everything, and works outside the checkout."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[1]


def run(*command, folder):
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in checked_out():
        target = sources / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    run(*build, sources, folder=folder)
    (file,) = folder.glob("*.whl")
    return file


def checked_out():
    """The files that the package is made of, relative to the checkout; the zoo's README is not."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            yield Path(name)
    for file in sorted((ROOT / "qdeploy").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md":
            yield file.relative_to(ROOT)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    expected = {name.as_posix() for name in checked_out() if name.parts[0] == "qdeploy"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    kinds = {Path(name).suffix for name in held}
    assert kinds == {".py", ".pyi", ".toml", ".html", ".css", ".typed"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment with the wheel; its other packages are those of this one."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=place)
    (site_packages,) = place.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def test_the_installed_package_trains_and_exports_a_zoo_recipe(installed, tmp_path):
    # A .pth in a .pth's folder is not read, so the checkout's own editable install stays out.
    code = "import qdeploy, qdeploy.models; print(qdeploy.__file__, qdeploy.models.__file__)"
    for file in run(installed / "python", "-c", code, folder=tmp_path).split():
        assert Path(file).is_relative_to(installed.parent)

    settings = ["--epochs", 1, "--set", "train.float_epochs=1", "-o", "run"]
    run(installed / "qdeploy", "train", "lenet5-digits-slb-w1a8", *settings, folder=tmp_path)
    run(installed / "qdeploy", "export", "run", "--samples", 50, folder=tmp_path)

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert report["version"] == project["version"]
    assert report["dataset"]["test_samples"] == 50
    assert report["size"]["onnx"] == (tmp_path / "run" / "model.onnx").stat().st_size
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
