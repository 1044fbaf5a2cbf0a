"""Imports point down the house of docs/architecture.md, and light rooms stay light."""

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[1]

EVERYBODY_MAY_KNOW = {"errors", "extensions", "files", "recipe", "references", "scores"}

# Room -> the rooms below it that it may import. The room "" is the package's own __init__.
ALLOWED = {
    "errors": set(),
    "extensions": set(),
    "files": set(),
    "references": set(),
    "scores": set(),
    "pictures": set(),
    "datasets": {"pictures"},
    "recipe": {"datasets"},
    "record": set(),
    "metrics": set(),
    "run": set(),
    "onnx_file": set(),
    "processes": set(),
    "grid": set(),
    "models": set(),
    "tasks": {"processes"},
    "layers": {"grid", "processes"},
    "methods": {"layers", "grid", "processes"},
    "preparation": {"methods", "layers", "grid", "processes", "record"},
    "benchmark": {"onnx_file", "record"},
    "deploy": {"preparation", "layers", "grid", "benchmark", "onnx_file", "record"},
    "proof": {"deploy", "benchmark", "preparation", "layers", "onnx_file", "record", "tasks"},
    "report": {"deploy", "record"},
    "data": {"datasets", "pictures"},
    "training": {"preparation", "layers", "data", "run", "metrics", "processes", "tasks"},
    "network_loading": {"models"},
    "pipeline": {
        "", "network_loading", "training", "report", "proof", "deploy", "benchmark", "preparation", "layers",
        "data", "datasets", "pictures", "run", "metrics", "record", "onnx_file", "processes", "tasks",
    },
    "__main__": {"cli"},
    "cli": {"pipeline", "report", "deploy", "methods", "models", "processes", "run"},
    "": {"network_loading", "deploy", "preparation"},
}  # fmt: skip

# What comes along with a dependency that pyproject.toml names.
COMES_WITH = {
    "pydantic_core": "pydantic",
    "typing_extensions": "pydantic",
    "markupsafe": "jinja2",
    "google": "onnx",  # protobuf
}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "onnxruntime-gpu": "onnxruntime"}


def modules():
    """Every module of the package by its name after `qdeploy.`, with its file."""
    for file in sorted((ROOT / "qdeploy").rglob("*.py")):
        parts = file.relative_to(ROOT / "qdeploy").with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), file


def imports(source):
    """Dotted names of all that a source imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name):
    """`qdeploy.deploy.convert` -> deploy; `qdeploy` and what only it exports -> ""."""
    first = name.removeprefix("qdeploy").lstrip(".").partition(".")[0]
    return first if first in ALLOWED else ""


def forbidden(module, source):
    """The imports of a module that the map does not allow."""
    room = room_of(f"qdeploy.{module}")
    allowed = ALLOWED[room] | EVERYBODY_MAY_KNOW
    for name in imports(source):
        if name.split(".")[0] == "qdeploy" and room_of(name) not in allowed | {room}:
            yield f"{module} imports {name}"


@pytest.mark.parametrize(
    ("module", "file"), [pytest.param(*m, id=m[0] or "qdeploy") for m in modules()]
)
def test_imports_point_down(module, file):
    assert not list(forbidden(module, file.read_text()))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("layers.weight", "from qdeploy.methods import Method"),
        ("layers.weight", "from qdeploy import methods"),
        ("methods.slb", "import qdeploy.preparation.trace"),
        ("benchmark.runtime", "def f():\n    from qdeploy.deploy import export"),
        ("report.html", "from qdeploy.pipeline.train import train"),
        ("training.loop", "from qdeploy.deploy.convert import convert"),
        ("deploy.packing", "from qdeploy.methods import Method"),
        ("preparation.convert", "from qdeploy.deploy.export import export"),
        ("proof.outputs", "from qdeploy.training.loop import fit"),
        ("pipeline.train", "import qdeploy.cli"),
        ("models.lenet5", "from qdeploy.layers.weight import WeightQuantizer"),
        ("data.open", "import qdeploy"),
    ],
)
def test_an_edge_that_points_up_is_found(module, line):
    assert len(list(forbidden(module, line))) == 1


def test_every_module_has_a_room():
    rooms = {name.partition(".")[0] for name, _ in modules()}
    assert rooms == set(ALLOWED)


def test_tests_share_helpers_and_not_each_other():
    """pytest imports every module by its bare name, so the names differ and no test needs another's."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    names = Counter(file.stem for file in files if file.stem != "conftest")
    assert max(names.values()) == 1, names.most_common(3)
    tests = {name for name in names if name.startswith("test_")}
    assert not [
        f"{file.name} imports {name}"
        for file in files
        for name in imports(file.read_text())
        if name.partition(".")[0] in tests
    ]


def test_the_map_itself_has_no_circle():
    left = dict(ALLOWED)
    while left:
        bottom = [room for room, below in left.items() if not below & left.keys()]
        assert bottom, f"a circle among {sorted(left)}"
        for room in bottom:
            del left[room]


def test_no_modules_import_each_other_in_a_circle():
    """Inside of a room too. A package imports its own modules, so it does not count as one of them."""
    names = {f"qdeploy.{module}" for module, _ in modules() if module}
    below = {}
    for module, file in modules():
        found = set(imports(file.read_text()))
        found |= {name.rpartition(".")[0] for name in found}
        own = f"qdeploy.{module}"
        below[own] = {
            name for name in found & names if name != own and not own.startswith(f"{name}.")
        }
    graphlib.TopologicalSorter(below).prepare()  # an error names the circle


def test_every_edge_of_the_map_is_needed():
    used = {room: set() for room in ALLOWED}
    for module, file in modules():
        room = room_of(f"qdeploy.{module}")
        names = [name for name in imports(file.read_text()) if name.split(".")[0] == "qdeploy"]
        used[room] |= {room_of(name) for name in names} - {room}
    unused = {room: below - used[room] for room, below in ALLOWED.items() if room}
    assert {room: below for room, below in unused.items() if below} == {}


def test_every_third_party_import_is_a_dependency():
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["cpu"], *extras["demo"]]
    names = {re.match(r"[\w-]+", dependency)[0] for dependency in required}
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    imported = {
        name.partition(".")[0] for _, file in modules() for name in imports(file.read_text())
    }
    strange = imported - set(sys.stdlib_module_names) - declared - {"qdeploy"}
    assert {name: COMES_WITH.get(name) for name in strange} == {
        name: source for name, source in COMES_WITH.items() if name in strange
    }
    assert {COMES_WITH[name] for name in strange} <= names
    assert declared <= imported, "a dependency that nothing imports"


def in_a_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "qdeploy",
        "qdeploy.deploy.inspect",
        "qdeploy.cli",
        "qdeploy.benchmark",
        "qdeploy.report",
        "qdeploy.recipe",
        "qdeploy.datasets.folder",
        "qdeploy.datasets.mnist",
        "qdeploy.pipeline.predict",
    ],
)
def test_it_imports_without_torch(module):
    found = in_a_process(f"import sys, {module}; print('torch' in sys.modules)")
    assert found.stdout == "False\n", found.stderr


def test_the_benchmark_command_runs_without_torch(tmp_path):
    code = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
import numpy as np, onnx
from qdeploy.cli import main
text = '<ir_version: 10, opset_import: ["": 21]> g (float[N,1,4,4] x) => (float[N,1,4,4] y) {{y = Relu(x)}}'
onnx.save(onnx.parser.parse_model(text), r"{tmp_path / "relu.onnx"}")
main(["benchmark", r"{tmp_path / "relu.onnx"}"])
"""
    found = in_a_process(code)
    assert found.returncode == 0, found.stderr
    assert "relu.onnx" in found.stdout
