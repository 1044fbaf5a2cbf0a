"""What is measured of an exported run: every form of the network on the test set, and the file on its own."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

import qdeploy
from qdeploy.benchmark import benchmark_files
from qdeploy.benchmark.machine import this_machine
from qdeploy.benchmark.providers import works
from qdeploy.benchmark.runtime import open_session
from qdeploy.data import Batch, Data, Normalisation
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.other_sizes import Sized
from qdeploy.deploy.seal import stamp
from qdeploy.deploy.target import Target, find_target, runtime_path
from qdeploy.layers.modes import evaluation_mode
from qdeploy.onnx_file import fits_one_file, stored_bytes, write
from qdeploy.pipeline.assemble import settings_text
from qdeploy.pipeline.build import Files
from qdeploy.pipeline.sizes import proven_by_codes, proven_by_outputs
from qdeploy.pipeline.trained_run import TrainedRun
from qdeploy.preparation.complexity import complexity
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.proof import outputs
from qdeploy.proof.description import describe, information_bound
from qdeploy.proof.gates import check_gates, with_promises
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.recipe import ExportSection
from qdeploy.record import Accuracies, Dataset, Delivery, Exactness, Figures, Record, Sizes
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
    trained: TrainedRun,
    section: ExportSection,
    integers: fx.GraphModule,
    files: Files,
    file: Path,
    sizes: Sequence[Sized],
    conditions: Conditions,
) -> Record:
    """The record of a file that is written: run on the test set, timed beside the float one, read.

    sizes   that it is proven on where it takes any
    """
    target = find_target(section.target)
    provider = provider_for(target, conditions.provider)
    runtime, files_run = runtimes(target, file, provider, trained.pixels)
    compared = compared_network(trained, integers, files, provider, conditions)
    judged = judge(trained, integers, compared, files_run, conditions)
    forms = ("float", "trained", "onnx", "prepared")
    names = {score.name for score in trained.scores}
    accuracy = Accuracies(*(among(names, judged.scores.get(form)) for form in forms))
    if compared is not None:
        proven = proven_by_codes(sizes, compared, trained)
    else:
        network = outputs.of_network(copy.deepcopy(integers), "cpu")
        proven = proven_by_outputs(sizes, network, files_run["onnx"])
    exactness = compared.result() if compared is not None else None
    if exactness is not None:
        stamp(files.model, "qdeploy.proof", proof_text(exactness))
        write(files.model, file)
    agreement = judged.agreements[TRAINED_TO_FILE]
    examples = zip(files.float.graph.input, trained.data.example, strict=True)
    shapes = {value.name: (1, *example.shape[1:]) for value, example in examples}
    timed = benchmark_files([trained.run.float_model, file], provider, shapes=shapes)
    contents = inspect(file)
    layers = describe(integers, contents.layers)
    size = bytes_of(trained, files, file, information_bound(integers, layers))
    saturation = contents.saturation(timed.placements[-1].file)
    promised = with_promises(section, exactness, timed.machine, saturation)
    return Record(
        name=trained.recipe.name,
        file=timed.placements[-1].file,
        version=qdeploy.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=timed.machine,
        recipe=trained.recipe.model_dump(mode="json"),
        method=trained.recipe.quantize.method,
        settings=settings_text(trained.network),
        dataset=Dataset(trained.data.title, judged.samples),
        accuracy=accuracy,
        agreement=agreement,
        size=size,
        complexity=complexity(trained.network, trained.data.example),
        layers=layers,
        latency=timed.latency,
        placements=timed.placements,
        gates=check_gates(promised, accuracy, agreement, exactness, size.onnx, trained.scores),
        training=tuple(dict(epoch.row()) for epoch in trained.history),
        checked=trained.network.checked if isinstance(trained.network, PreparedNetwork) else None,
        delivery=Delivery(
            target=section.target,
            input=files.input,
            activations=target.coarser_steps(integers) if target.coarser_steps else None,
            runs_on=contents.runs_on,
            runtime=runtime,
            agreement=judged.agreements.get(FILE_TO_RUNTIME),
        ),
        exactness=exactness,
        saturation=saturation,
        task=trained.recipe.task.kind,
        scores=trained.scores,
        sizes=proven,
    )


def proof_text(exactness: Exactness) -> str:
    """What the file says of its own proof."""
    found = {
        "codes": exactness.compared,
        "differing": exactness.differing,
        "inputs": exactness.samples,
    }
    return json.dumps(found | {"processor": this_machine().cpu}, separators=(",", ":"))


def bytes_of(trained: TrainedRun, files: Files, file: Path, bound: int) -> Sizes:
    """What lies on the disk; the int8 twin is only counted, and beyond protobuf's limit not at all."""
    return Sizes(
        onnx=stored_bytes(file),
        float=stored_bytes(trained.run.float_model),
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
    trained: TrainedRun,
    integers: fx.GraphModule,
    files: Files,
    provider: str,
    conditions: Conditions,
) -> ComparedNetwork | None:
    """The integers beside their file, where ONNX Runtime computes it as they do; else None."""
    if not files.tensors or not find_target(trained.recipe.export.target).is_onnx_runtime:
        return None
    # A copy: what goes to the device stays there.
    network = copy.deepcopy(integers).to(pick_device(conditions.device))
    return ComparedNetwork(network, files.model, files.tensors, provider)


def judge(
    trained: TrainedRun,
    integers: nn.Module,
    compared: ComparedNetwork | None,
    files: dict[str, outputs.Form],
    conditions: Conditions,
) -> outputs.Judged:
    """Every form of the network on the test set: of the float one only if it is trained."""
    torch_device = pick_device(conditions.device)
    if compared is not None:
        networks = {"trained": outputs.of_compared(compared, trained.pixels)}
    else:
        networks = {"trained": outputs.of_network(copy.deepcopy(integers), torch_device)}
    if isinstance(trained.network, PreparedNetwork):
        networks["prepared"] = outputs.of_network(copy.deepcopy(trained.network), torch_device)
    if trained.float_is_trained:
        networks["float"] = outputs.of_network(trained.float_network, torch_device)
    forms = networks | files
    tested = trained.data.test
    if conditions.samples is not None:
        tested = tested.shortened(conditions.samples)
    return outputs.judge(
        forms,
        whole_pixels(tested.epoch(0), trained),
        trained.task,
        len(trained.data.classes),
        structure_of(integers, trained.data),
        [pair for pair in (TRAINED_TO_FILE, FILE_TO_RUNTIME) if set(pair) <= set(forms)],
    )


def among(names: Collection[str], figures: Mapping[str, float] | None) -> Figures | None:
    """The figures of these names; None of a form that did not take part."""
    if figures is None:
        return None
    return {name: value for name, value in figures.items() if name in names}


def structure_of(network: nn.Module, data: Data) -> pytree.TreeSpec:
    """Of what a network gives: a tensor, or several in a tuple, list or dict."""
    with evaluation_mode(network), torch.no_grad():
        return pytree.tree_structure(network(*data.example))


def whole_pixels(batches: Iterable[Batch], trained: TrainedRun) -> Iterator[Batch]:
    """The batches; where the file takes uint8, rounded to whole pixels if resizing left none."""
    if trained.pixels is None or trained.data.mean is None or trained.data.std is None:
        yield from batches
        return
    normalise = Normalisation(trained.data.mean, trained.data.std, "cpu")
    for images, labels in batches:
        yield normalise(normalise.pixels(images.cpu())), labels
