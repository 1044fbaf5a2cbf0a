"""What a GPU user does, done once and measured, a stage at a time.

    python tools/gpu_checks.py FOLDER --data-root DATA             # every stage
    python tools/gpu_checks.py FOLDER latency steps                # these stages
    python tools/gpu_checks.py FOLDER --data-root DATA --seconds 580   # as far as they get in that time
    python tools/gpu_checks.py FOLDER --data-root DATA --dry-run   # on a CPU, in a few minutes

Each stage is a process of its own and ends by its time limit. FOLDER/STAGE.json has what it has found
so far, and FOLDER/all.json what all have found, how each ended, and the last words of one that failed:
it is the one file to take home. With --dry-run the same code runs on the CPU with small networks and few
rounds: whatever would break on the borrowed GPU breaks here first.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from compare_inference import versions
from junit import read_report
from latency import exported
from plans import ROOT, Plan
from reproduce import commit
from torch import Tensor, fx
from trainers import images_of, prepared_for, step_of

import qdeploy
from qdeploy.benchmark import benchmark_files, this_machine
from qdeploy.benchmark.latency import run_in_turns
from qdeploy.benchmark.providers import PROVIDERS, why_not, works
from qdeploy.benchmark.runtime import open_session
from qdeploy.deploy.export import finished_with_tensors, to_onnx
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.layers.modes import full_float32
from qdeploy.pipeline.export import export_run
from qdeploy.pipeline.measure import Conditions
from qdeploy.pipeline.train import train
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.proof.tensors import tensors_to_compare, with_outputs
from qdeploy.recipe import Recipe

Figures = dict[str, Any]
Shape = tuple[int, int, int, int]

METHODS = (
    "simqat 8 8", "simqat 4 4", "slb 1 8", "slb 2 8", "slb 4 8", "dorefa 8 8", "dorefa 4 4",
    "dorefa 1 8", "xnor 1 1", "ternary 2 8", "pact 4 4", "lsq 8 8", "lsq 4 4", "int8_training 8 8",
)  # fmt: skip
COMPILED = ("float", "simqat 8 8", "slb 1 8", "lsq 4 4", "dorefa 4 4")


@dataclass(frozen=True)
class Setup:
    """Where a stage runs, and how much of its work."""

    dry: bool
    data_root: Path | None

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


@dataclass(frozen=True)
class Stage:
    """A check, its time limit in seconds, and the question that it answers.

    run   gives its figures as often as there are more of them
    """

    run: Callable[[Setup], Iterator[Figures]]
    limit: int
    question: str


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("stages", nargs=-1)
@click.option("--data-root", type=click.Path(path_type=Path), help="Where the data sets are.")
@click.option("--seconds", type=float, default=float("inf"), help="For all stages together.")
@click.option("--dry-run", is_flag=True, help="On the CPU, with less of everything.")
@click.option("--here", is_flag=True, hidden=True, help="Run one stage in this process.")
def main(
    folder: Path,
    stages: tuple[str, ...],
    data_root: Path | None,
    seconds: float,
    dry_run: bool,
    here: bool,
) -> None:
    if unknown := set(stages) - set(STAGES):
        raise click.UsageError(
            f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}"
        )
    if not dry_run and not torch.cuda.is_available():
        raise click.UsageError("torch finds no CUDA device; --dry-run tries the stages on the CPU")
    folder.mkdir(parents=True, exist_ok=True)
    if here:
        taken = {"machine": asdict(this_machine()), "versions": dict(versions())}
        for figures in STAGES[stages[0]].run(Setup(dry_run, data_root)):
            keep(taken | figures, folder / f"{stages[0]}.json")
        return
    deadline = time.monotonic() + seconds
    every = folder / "all.json"
    found = json.loads(every.read_text()) if every.exists() else {}
    for name in stages or STAGES:
        started = time.monotonic()
        limit = min(STAGES[name].limit, deadline - started)
        ended = in_a_process(name, folder, data_root, dry_run, limit)
        took = time.monotonic() - started
        found[name] = {"ended": ended, "seconds": took, **left_by(name, folder, ended)}
        keep(found, every)
        click.echo(f"{name}: {ended} after {took:.0f} s")


def in_a_process(
    name: str, folder: Path, data_root: Path | None, dry_run: bool, limit: float
) -> str:
    """Runs a stage; says how it ended. Its own words are in FOLDER/STAGE.log."""
    if limit <= 0:
        return "not started: no time was left"
    command = [sys.executable, __file__, str(folder), name, "--here"]
    command += ["--dry-run"] if dry_run else []
    command += ["--data-root", str(data_root)] if data_root else []
    (folder / f"{name}.json").unlink(missing_ok=True)
    with (folder / f"{name}.log").open("wb") as log:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped at its limit of {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"failed with {code}" if code else "done"


def left_by(name: str, folder: Path, ended: str) -> Figures:
    """The figures of a stage, as far as it got, and the last of its words unless all went well."""
    figures, log = folder / f"{name}.json", folder / f"{name}.log"
    found: Figures = {"figures": json.loads(figures.read_text()) if figures.exists() else None}
    if ended != "done" and log.exists():
        found["log"] = log.read_text(errors="replace")[-4000:]
    return found


def keep(figures: Figures, file: Path) -> None:
    with atomic_write(file) as out:
        out.write((json.dumps(figures, indent=1) + "\n").encode())


# --- what there is


def there_is(setup: Setup) -> Iterator[Figures]:
    """The providers that really run a network or what keeps them from it, and what torch sees."""
    yield {
        "providers": {name: works(name) for name in PROVIDERS},
        "why_not": {name: why_not(name) for name in PROVIDERS},
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


# --- latency


def latency(setup: Setup) -> Iterator[Figures]:
    """Float32, float16, int8 and 1-bit files of one network under each provider, and CUDA graphs.

    On a GPU with data there, and copied in each run. int8 has nodes on the CPU: its graph is refused.
    """
    network = (
        ("lenet5", {}, (1, 28, 28))
        if setup.dry
        else ("resnet18", {"num_classes": 1000, "stem": "imagenet"}, (3, 224, 224))
    )
    batches, rounds = ((1, 2), 5) if setup.dry else ((1, 8, 64), 200)
    with tempfile.TemporaryDirectory() as name:
        files, seconds = exported(*network, Path(name))
        files.insert(1, float16(files[0]))
        figures: Figures = {"network": network, "export_seconds": seconds, "providers": {}}
        for provider in filter(works, ("cuda", "tensorrt", "cpu")):
            measured = benchmark_files(files, provider, 1, batches, rounds)
            figures["providers"][provider] = asdict(measured)
            yield figures
        figures["cuda_graph"] = {
            file.name: as_cuda_graph(file, batches, rounds) for file in files[:3]
        }
    yield figures


def as_cuda_graph(file: Path, batches: tuple[int, ...], rounds: int) -> list[Figures] | str:
    """A file's latency as replays of a CUDA graph, or why there is none."""
    try:
        measured = benchmark_files([file], "cuda", 1, batches, rounds, cuda_graph=True)
    except QdeployError as error:
        return str(error)
    return [asdict(row) for row in measured.latency]


def float16(file: Path) -> Path:
    """The file's network in float16, with float32 input and output, as ONNX Runtime converts it."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = file.with_name("float16.onnx")
    onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), half)
    return half


# --- training steps


@dataclass(frozen=True)
class Way:
    """A way to train: "float", or "METHOD WEIGHT_BITS ACT_BITS"."""

    given: str
    precision: str = "32"
    layout: torch.memory_format = field(default=torch.channels_last)
    compiled: bool = False

    @property
    def name(self) -> str:
        words = [self.given, self.precision]
        words += ["NCHW"] if self.layout is torch.contiguous_format else []
        return ", ".join(words + (["compiled"] if self.compiled else []))


def steps(setup: Setup) -> Iterator[Figures]:
    """A training step of each method against float, stored channels last, in turns."""
    networks: dict[str, tuple[Shape, Sequence[str]]] = {
        "resnet20s": ((128, 3, 32, 32), METHODS),
        "resnet18": ((128, 3, 32, 32), ("simqat 8 8", "slb 1 8", "slb 4 8")),
    }
    if setup.dry:
        networks = {"lenet5": ((8, 1, 28, 28), METHODS[:3])}
    rows: list[Figures] = []
    for network, (shape, methods) in networks.items():
        rows += compared(network, shape, ways_of(methods), setup)
        yield {"steps": rows}


def ways_of(methods: Sequence[str]) -> list[Way]:
    """Float first, with which the others are compared; bf16 of the widest methods."""
    plain = [Way("float"), Way("float", layout=torch.contiguous_format), *map(Way, methods)]
    return [*plain, *(Way(given, "bf16") for given in ("float", *methods[:3]))]


def compiled_steps(setup: Setup) -> Iterator[Figures]:
    """Each under torch.compile beside its plain step, whose losses it must give."""
    network: str
    shape: Shape
    network, shape = ("lenet5", (8, 1, 28, 28)) if setup.dry else ("resnet20s", (128, 3, 32, 32))
    rows: list[Figures] = []
    for given in COMPILED[1:2] if setup.dry else COMPILED:
        rows += compared(network, shape, [Way(given), Way(given, compiled=True)], setup)
        yield {"steps": rows}


def compared(network: str, shape: Shape, ways: list[Way], setup: Setup) -> Iterator[Figures]:
    """A row for each way: median step, memory at its peak, ratio to the first way."""
    rows, calls = [], []
    for way in ways:
        row: Figures = {"network": network, "batch": shape[0], "way": way.name}
        try:
            images = images_of(shape)
            model = prepared_for(network, way.given, images)
            calls.append(step_of(model, images, way.layout, way.precision, way.compiled))
            row |= {"losses": [calls[-1]() for _ in range(3)], "peak_mb": peak_mb(calls[-1])}
            rows.append(row)
        except Exception as error:  # whatever breaks is a finding of the check
            del calls[len(rows) :]
            yield row | {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
    times = np.median(run_in_turns(calls, 5 if setup.dry else 60, 1.0), axis=1)
    for row, time_ms in zip(rows, times, strict=True):
        yield row | {"step_ms": float(time_ms), "time": float(time_ms / times[0])}


def peak_mb(step: Callable[[], object]) -> float | None:
    """What a step takes at its peak beyond what was taken before, in MB; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


# --- whole runs


def demo(setup: Setup) -> Iterator[Figures]:
    """`qdeploy train` and `qdeploy export` of the demo with CUDA everywhere."""
    yield whole_run(setup, "lenet5-digits-slb-w1a8", ["train.epochs=2"] if setup.dry else [])


def mnist(setup: Setup) -> Iterator[Figures]:
    """LeNet-5 on MNIST: three epochs in float, three quantized, exported and validated."""
    epochs, before = (1, 0) if setup.dry else (3, 3)
    changes = [f"train.epochs={epochs}", f"train.float_epochs={before}"]
    yield whole_run(setup, "lenet5-mnist-simqat", changes)


def whole_run(setup: Setup, recipe: str, changes: list[str]) -> Figures:
    with tempfile.TemporaryDirectory() as name:
        run = train(
            Recipe.load(recipe, changes),
            Path(name) / "run",
            data_root=setup.data_root,
            device=setup.device,
        )
        records = {
            provider: json.loads(
                export_run(
                    run.path,
                    conditions=Conditions(
                        setup.data_root, setup.device, provider, 500 if setup.dry else None
                    ),
                ).to_json()
            )
            for provider in ("cpu", "cuda")
            if works(provider)
        }
    return {"recipe": recipe, "changes": changes, "records": records}


# --- codes


def codes(setup: Setup) -> Iterator[Figures]:
    """Which codes differ between torch and ONNX Runtime, each on the CPU and on the GPU."""
    networks = {"resnet20": (3, 32, 32), "resnet18": (3, 64, 64)}
    if setup.dry:
        networks = {"lenet5": (1, 28, 28)}
    rows: list[Figures] = []
    for network, shape in networks.items():
        for given in ("simqat 8 8", "lsq 2 2", "slb 1 8"):
            found = differing(network, shape, given, setup)
            rows.append({"network": network, "given": given, **found})
            yield {"networks": rows}


def differing(network: str, shape: tuple[int, ...], given: str, setup: Setup) -> Figures:
    """Shares of differing codes, over all quantized tensors, for each pair of computers."""
    torch.manual_seed(0)
    images = torch.randn(16, *shape)
    prepared = prepared_for(network, given, images)
    assert isinstance(prepared, PreparedNetwork)
    qdeploy.calibrate(prepared, [images], batch_norm=True)
    converted = qdeploy.convert(prepared)
    file, tensors = finished_with_tensors(to_onnx(converted, images), True, {})
    names = tensors_to_compare(converted, tensors)
    exposed = with_outputs(file, [tensors[name] for name in names])
    found = {"torch on the CPU": in_torch(converted, images, "cpu", names)}
    if not setup.dry:
        found["torch on the GPU"] = in_torch(converted, images, "cuda", names)
    for provider in ("cpu", "cuda"):
        if works(provider):
            session = open_session(exposed, provider).inference
            found[f"ONNX Runtime, {provider}"] = session.run(None, {"input": images.numpy()})
    pairs = itertools.combinations(found, 2)
    return {f"{a} / {b}": differences(found[a], found[b]) for a, b in pairs}


def in_torch(converted: fx.GraphModule, images: Tensor, device: str, names: list[str]) -> list[Any]:
    """Logits, and the codes of the quantizers of these names."""
    network = copy.deepcopy(converted).eval().to(device)
    run = fx.Interpreter(network, garbage_collect_values=False)
    with torch.inference_mode(), full_float32():
        logits = run.run(images.to(device))
    values = {node.name: (node, value) for node, value in run.env.items() if node.name in names}
    found = []
    for name in names:
        node, value = values[name]
        quantizer: Any = network.get_submodule(str(node.target))
        scale, zero = quantizer.step
        found.append((value.cpu() / scale).round().numpy() + zero)
    return [logits.cpu().numpy(), *found]


def differences(a: list[Any], b: list[Any]) -> Figures:
    steps = [np.abs(x - y.astype(np.float32)) for x, y in zip(a[1:], b[1:], strict=True)]
    count = sum(step.size for step in steps)
    return {
        "codes": count,
        "differing": int(sum((step > 0).sum() for step in steps)),
        "most_steps": int(max(step.max() for step in steps)),
        "first": float((steps[1] > 0).mean()) if len(steps) > 1 else None,
        "same_class": float((a[0].argmax(1) == b[0].argmax(1)).mean()),
        "largest_logit_difference": float(np.abs(a[0] - b[0]).max()),
        "logit_range": float(np.ptp(a[0])),
    }


# --- tests


def tests(setup: Setup) -> Iterator[Figures]:
    """The tests that need a GPU: how many there are of each result, and what those say that fail."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "tests.xml"
        marked = (f for f in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text())
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        subprocess.run([*command, *map(str, marked)], cwd=ROOT, check=False)
        yield read_report(report)


# --- rows of the tables


def rows(setup: Setup) -> Iterator[Figures]:
    """Rows of a plan by tools/reproduce.py, all at once, each in a process; in a fresh place for results."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shutil.copytree(ROOT / "tools", place / "tools")
        (place / "results").mkdir()
        (place / "tools" / "plans" / "dry.toml").write_text(DRY_PLAN)
        plan = "dry" if setup.dry else "cifar10-gpu"
        names = DRY_ROWS if setup.dry else Plan.load(plan).rows
        processes = {row: reproduced(plan, row, place, setup) for row in names}
        while processes:
            ended = [row for row, process in processes.items() if process.poll() is not None]
            for row in ended:
                del processes[row]
            if ended:
                results = place / "results" / f"{plan}.json"
                found = json.loads(results.read_text()) if results.exists() else []
                yield {"plan": plan, "rows": found, "running": list(processes)}
            time.sleep(1)


DRY_ROWS = ("float", "slb-w1a8")
DRY_PLAN = """
set = ["train.epochs=1", "train.float_epochs=0"]
[rows.float]
recipe = "lenet5-digits-slb-w1a8"
set = ["quantize.method=float", "quantize.options={}", "quantize.layers={}"]
[rows.slb-w1a8]
recipe = "lenet5-digits-slb-w1a8"
starts_from = "float"
"""


def reproduced(plan: str, row: str, place: Path, setup: Setup) -> subprocess.Popen[bytes]:
    """A process that trains and proves one row; what it says goes to the stage's log."""
    command = [sys.executable, str(place / "tools" / "reproduce.py"), plan, row]
    command += ["--runs", str(place / "runs"), "--device", setup.device]
    command += ["--data-root", str(setup.data_root)] if setup.data_root else []
    return subprocess.Popen(command, env=os.environ | {"QDEPLOY_COMMIT": commit()})


STAGES = {
    "there_is": Stage(there_is, 60, "Which providers work?"),
    "tests": Stage(tests, 150, "Do the tests that need a GPU pass?"),
    "latency": Stage(latency, 200, "How fast is each file?"),
    "codes": Stage(codes, 90, "Which codes differ?"),
    "demo": Stage(demo, 90, "Does the demo train and prove itself with CUDA?"),
    "compiled_steps": Stage(compiled_steps, 300, "Does torch.compile help?"),
    "steps": Stage(steps, 150, "What does a quantized training step cost?"),
    "mnist": Stage(mnist, 120, "Does a run of MNIST?"),
    "rows": Stage(rows, 400, "How accurate are the rows of the tables?"),
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
