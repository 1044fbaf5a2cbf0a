"""The runtimes that tools/try_runtimes.py tries: what each is installed from, and how it is called."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NUMPY_1 = "numpy<2"  # what wheels before 2024 were built against


@dataclass(frozen=True)
class Runtime:
    """One row of the table.

    runner     the function of run_files.py that runs a file in it; "node" for run_files.cjs
    packages   of PyPI, or for "node" the one package of npm, with versions where they are not the newest
    options    for the runner: session settings, properties of a device
    """

    name: str
    runner: str
    packages: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def _onnxruntime(version: str, *more: str) -> Runtime:
    packages = (f"onnxruntime=={version}", *more)
    return Runtime(f"ONNX Runtime {version.rpartition('.')[0]}", "onnxruntime", packages)


NEWEST = Runtime("ONNX Runtime, newest", "onnxruntime", ("onnxruntime", "numpy"))
RUNTIMES = (
    NEWEST,
    _onnxruntime("1.15.1", NUMPY_1),
    _onnxruntime("1.17.3", NUMPY_1),
    _onnxruntime("1.18.1", NUMPY_1),
    _onnxruntime("1.20.1"),
    _onnxruntime("1.21.1"),
    _onnxruntime("1.23.2"),
    _onnxruntime("1.27.0"),
    Runtime(
        "ONNX Runtime, weights uint8 at load",
        "onnxruntime",
        NEWEST.packages,
        options={"session.x64quantprecision": "1"},
    ),
    Runtime(
        "ONNX Runtime, as written",
        "onnxruntime",
        NEWEST.packages,
        options={"session.disable_quant_qdq": "1"},
    ),
    Runtime("onnxruntime-node", "node", ("onnxruntime-node",)),
    Runtime("onnxruntime-web (WebAssembly)", "node", ("onnxruntime-web",)),
    Runtime("OpenVINO", "openvino", ("openvino",)),
    Runtime(
        "OpenVINO, LP_TRANSFORMS_MODE=NO",
        "openvino",
        ("openvino",),
        options={"LP_TRANSFORMS_MODE": "NO"},
    ),
    Runtime("onnx's reference evaluator", "reference", ("onnx",)),
    Runtime("OpenCV dnn", "opencv", ("opencv-python-headless",)),
    Runtime("tract", "tract", ("tract", "numpy")),
)


def set_up(runtime: Runtime, folder: Path, uv: str, python: str) -> Path:
    """An environment with its packages, made unless it is there, and its path."""
    name = "+".join(runtime.packages).translate(str.maketrans("=<>", "---"))
    environment = folder / name
    done = environment / "complete"
    if done.exists():
        return environment
    if runtime.runner == "node":
        environment.mkdir(parents=True, exist_ok=True)
        # Scripts would fetch CUDA's libraries; what runs on a CPU is in the package.
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        _run(["npm", "install", *quiet, *runtime.packages], environment)
    else:
        _run([uv, "venv", "--quiet", "--clear", "--python", python, str(environment)], folder)
        interpreter = str(environment / "bin" / "python")
        _run([uv, "pip", "install", "--quiet", "--python", interpreter, *runtime.packages], folder)
    done.touch()
    return environment


def _run(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)}: {found.stderr.strip()[-500:]}")


def version(runtime: Runtime, environment: Path) -> str:
    """What was installed, of the runtime's first package."""
    package = runtime.packages[0].partition("==")[0]
    if runtime.runner == "node":
        manifest = environment / "node_modules" / package / "package.json"
        return str(json.loads(manifest.read_text())["version"])
    wanted = package.replace("-", "_").lower()
    for info in environment.glob("lib/python*/site-packages/*.dist-info"):
        name, _, found = info.name.removesuffix(".dist-info").partition("-")
        if name.lower() == wanted:
            return found
    raise RuntimeError(f"{package} is not in {environment}")


def run_all(
    runtime: Runtime, environment: Path, files: Path, output: Path, cases: list[str]
) -> Iterator[dict[str, Any]]:
    """What the runner says of each case; a process that dies is started again behind the one it died of."""
    waiting = list(cases)
    while waiting:
        answers = list(_answers(runtime, environment, files, output, waiting))
        yield from answers
        waiting = waiting[len(answers) :]
        if waiting:
            yield {"case": waiting.pop(0), "error": "the process died"}


def _answers(
    runtime: Runtime, environment: Path, files: Path, output: Path, cases: list[str]
) -> Iterator[dict[str, Any]]:
    options = json.dumps(dict(runtime.options))
    if runtime.runner == "node":
        head = ["node", str(HERE / "run_files.cjs"), str(environment / "package.json")]
        head.append(runtime.packages[0])
    else:
        head = [str(environment / "bin" / "python"), str(HERE / "run_files.py"), runtime.runner]
    with subprocess.Popen(
        [*head, str(output), options, *cases],
        cwd=files,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout if line.startswith('{"case"'))
