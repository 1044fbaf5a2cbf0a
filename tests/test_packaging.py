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
def sources(tmp_path_factory):
    """A copy, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    for name in checked_out():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    run(*build, sources, folder=folder)
    (file,) = folder.glob("*.whl")
    return file


def environment(place, *installed):
    """The site-packages of a new environment at `place`, into which pip has installed these."""
    venv.create(place, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python"]
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run(*pip, "install", *options, *installed, folder=place)
    (site_packages,) = place.glob("lib/python*/site-packages")
    return site_packages


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


def test_an_editable_install_is_a_path_that_type_checkers_and_editors_follow(sources, tmp_path):
    """They read .pth files and cannot run the finder that setuptools else leaves (PEP 660)."""
    hook = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    run(sys.executable, "-c", hook, folder=sources)
    (editable,) = tmp_path.glob("*.whl")
    (path,) = environment(tmp_path / "venv", editable).glob("*qdeploy*.pth")
    assert path.read_text().split() == [str(sources)]
    assert (sources / "qdeploy" / "py.typed").is_file()  # PEP 561: its annotations count


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment with the wheel; its other packages are those of this one."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    site_packages = environment(place, wheel)
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
