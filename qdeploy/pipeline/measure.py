"""What is measured of a file: every form of its network on the test data, and the file on its own."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from torch import nn

import qdeploy
from qdeploy.benchmark import benchmark_files
from qdeploy.benchmark.providers import works
from qdeploy.benchmark.runtime import open_session
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.other_sizes import Sized
from qdeploy.deploy.target import Target, find_target, runtime_path
from qdeploy.onnx_file import fits_one_file, stored_bytes
from qdeploy.pipeline.assemble import settings_text
from qdeploy.pipeline.build import Files
from qdeploy.pipeline.sizes import proven_by_codes, proven_by_outputs
from qdeploy.pipeline.subject import Subject
from qdeploy.preparation.complexity import complexity
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.proof import outputs
from qdeploy.proof.description import describe, information_bound
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.record import Accuracies, Dataset, Delivery, Figures, Record, Sizes
from qdeploy.training.device import pick_device

# Pairs of forms that are compared.
TRAINED_TO_FILE, FILE_TO_RUNTIME = ("trained", "onnx"), ("onnx", "runtime")


@dataclass(frozen=True)
class Conditions:
    """Where a file is proven, and on how much.

    data_root   where the data sets are, in place of what the recipe says
    device      where PyTorch runs
    provider    where ONNX Runtime runs
    samples     the first so many test images validate; all by default
    """

    data_root: Path | None = None
    device: str = "auto"
    provider: str = "auto"
    samples: int | None = None


def measured(
    subject: Subject,
    files: Files,
    file: Path,
    float_file: Path | None,
    sizes: Sequence[Sized],
    conditions: Conditions,
) -> Record:
    """The record of a file that is written: run on the test data, timed beside the float one, read.

    sizes   that it is proven on where it takes any
    """
    target, integers = find_target(files.target), subject.integers
    provider = provider_for(target, conditions.provider)
    runtime, files_run = runtimes(target, file, provider, subject.pixels)
    compared = compared_network(subject, files, provider, conditions)
    judged = judge(subject, compared, files_run, conditions)
    forms = ("float", "trained", "onnx", "prepared")
    names = {score.name for score in subject.scores}
    accuracy = Accuracies(*(among(names, judged.scores.get(form)) for form in forms))
    if compared is not None:
        proven = proven_by_codes(sizes, compared, subject.pixels)
    else:
        network = outputs.of_network(copy.deepcopy(integers), "cpu")
        proven = proven_by_outputs(sizes, network, files_run["onnx"])
    inputs = zip(files.model.graph.input, subject.example, strict=True)
    shapes = {value.name: (1, *example.shape[1:]) for value, example in inputs}
    timed_files = [file] if float_file is None else [float_file, file]
    timed = benchmark_files(timed_files, provider, shapes=shapes)
    contents = inspect(file)
    layers = describe(integers, contents.layers)
    return Record(
        name=file.stem,
        file=timed.placements[-1].file,
        version=qdeploy.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=timed.machine,
        recipe={},
        method=method_of(subject.trained),
        settings=settings_text(subject.trained),
        dataset=Dataset(subject.title, judged.samples),
        accuracy=accuracy,
        agreement=judged.agreements[TRAINED_TO_FILE],
        size=bytes_of(files, file, float_file, information_bound(integers, layers)),
        complexity=complexity(subject.trained, subject.example),
        layers=layers,
        latency=timed.latency,
        placements=timed.placements,
        gates=(),
        training=(),
        checked=subject.trained.checked if isinstance(subject.trained, PreparedNetwork) else None,
        delivery=Delivery(
            target=files.target,
            input=files.input,
            activations=target.coarser_steps(integers) if target.coarser_steps else None,
            runs_on=contents.runs_on,
            runtime=runtime,
            agreement=judged.agreements.get(FILE_TO_RUNTIME),
        ),
        exactness=compared.result() if compared is not None else None,
        saturation=contents.saturation(timed.placements[-1].file),
        task=subject.kind,
        scores=subject.scores,
        sizes=proven,
    )


def method_of(network: nn.Module) -> str:
    """The methods of a network's layers, such as "simqat"; "float" for none."""
    settings = network.settings.values() if isinstance(network, PreparedNetwork) else ()
    return " and ".join(dict.fromkeys(one.method_name for one in settings if one)) or "float"


def bytes_of(files: Files, file: Path, float_file: Path | None, bound: int) -> Sizes:
    """What lies on the disk; the int8 twin is only counted, and beyond protobuf's limit not at all."""
    return Sizes(
        onnx=stored_bytes(file),
        float=None if float_file is None else stored_bytes(float_file),
        int8=files.int8.ByteSize() if fits_one_file(files.int8) else None,
        bound=bound,
    )


def provider_for(target: Target, provider: str) -> str:
    """Where the file is run: if nobody says, on the target's own provider where that works."""
    if provider == "auto" and target.provider is not None and works(target.provider):
        return target.provider
    return provider


def runtimes(
    target: Target, file: Path, provider: str, pixels: outputs.Pixels | None
) -> tuple[str | None, dict[str, outputs.Form]]:
    """The file in ONNX Runtime and, if its target has another runtime, in that too, with its name."""
    threads = os.cpu_count() or 1
    session = open_session(file, provider, threads, as_written=target.as_written)
    forms = {"onnx": outputs.of_runtime(session.run_all, pixels)}
    if target.load is None:
        return None, forms
    name, run = target.load(runtime_path(target, file))
    return name, {**forms, "runtime": outputs.of_runtime(run, pixels)}


def compared_network(
    subject: Subject, files: Files, provider: str, conditions: Conditions
) -> ComparedNetwork | None:
    """The integers beside their file, where ONNX Runtime computes it as they do; else None."""
    if not files.tensors or not find_target(files.target).is_onnx_runtime:
        return None
    # A copy: what goes to the device stays there.
    network = copy.deepcopy(subject.integers).to(pick_device(conditions.device))
    return ComparedNetwork(network, files.model, files.tensors, provider)


def judge(
    subject: Subject,
    compared: ComparedNetwork | None,
    files: dict[str, outputs.Form],
    conditions: Conditions,
) -> outputs.Judged:
    """Every form of the network on the test data: of the float one only if it is trained."""
    device = pick_device(conditions.device)
    if compared is not None:
        networks = {"trained": outputs.of_compared(compared, subject.pixels)}
    else:
        networks = {"trained": outputs.of_network(copy.deepcopy(subject.integers), device)}
    if isinstance(subject.trained, PreparedNetwork):
        networks["prepared"] = outputs.of_network(copy.deepcopy(subject.trained), device)
    if subject.float_network is not None:
        networks["float"] = outputs.of_network(subject.float_network, device)
    forms = networks | files
    return outputs.judge(
        forms,
        subject.batches,
        subject.task,
        subject.classes,
        subject.structure,
        [pair for pair in (TRAINED_TO_FILE, FILE_TO_RUNTIME) if set(pair) <= set(forms)],
    )


def among(names: Collection[str], figures: Mapping[str, float] | None) -> Figures | None:
    """The figures of these names; None of a form that did not take part."""
    if figures is None:
        return None
    return {name: value for name, value in figures.items() if name in names}
