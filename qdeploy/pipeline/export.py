"""export: from a run folder to a proven ONNX file and its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from qdeploy.benchmark.machine import this_machine
from qdeploy.benchmark.providers import choose
from qdeploy.deploy.seal import stamp
from qdeploy.deploy.size_check import checked_sizes
from qdeploy.deploy.target import find_target, onnx_path, write_for
from qdeploy.deploy.triton import write_repository
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import stored_bytes, write
from qdeploy.pipeline.build import Files, build, build_float, integers_of, normalisation_of
from qdeploy.pipeline.measure import Conditions, measured
from qdeploy.pipeline.subject import subject_of, whole_pixels
from qdeploy.pipeline.trained_run import TrainedRun, Which, load_run
from qdeploy.preparation.trace import as_inputs
from qdeploy.proof.gates import check_gates, check_possible, with_promises
from qdeploy.recipe import ExportSection
from qdeploy.record import Exactness, Record
from qdeploy.report.write import write_pages
from qdeploy.run import RunFolder

IMAGES = 4  # that a file of open sizes is run on at each size


def export_run(
    path: Path,
    output: Path | None = None,
    *,
    changes: Mapping[str, object] | None = None,
    checkpoint: Which = "last",
    conditions: Conditions | None = None,
    triton: Path | None = None,
) -> Record:
    """Exports a run, validates the file on the test set, writes the report into the run folder.

    output      the ONNX file; model.onnx in the run folder by default. A runtime's own lies beside it
    changes     keys of the recipe's [export] with other values; what a failed gate means is the
                caller's affair
    checkpoint  "last", or "best": the epoch that did best on the validation set, or without one on
                the very test set
    triton      also make a model repository for Triton in this folder

    Errors: QdeployError for a folder that is no trained run, and as the parts have them.
    """
    run, conditions = RunFolder(path), conditions or Conditions()
    file = output or run.model
    check_file(file, run)
    choose(conditions.provider)
    trained = load_run(run, checkpoint, conditions.data_root, conditions.device)
    section = trained.export_section(**(changes or {}))
    check_possible(section, trained.task, trained.scores)
    trained = trained.exported_as(section)
    target = find_target(section.target)
    file = onnx_path(target, file)
    integers = integers_of(trained)
    files = build(trained, integers)
    batch, _ = next(whole_pixels(trained.data.test.shortened(IMAGES).epoch(0), trained))
    pixels = normalisation_of(trained.data) if section.input == "uint8" else None
    sizes = checked_sizes(files.model, integers, target, as_inputs(batch), pixels)
    write_for(target, files.model, file)
    write(build_float(trained), run.float_model)
    subject = subject_of(trained, integers, conditions.samples)
    found = measured(subject, files, file, run.float_model, sizes, conditions)
    record = of_run(with_proof(found, files, file), trained, section)
    if triton is not None:
        write_repository(file, triton, record.name, record.delivery.target)
    write_pages(record, run.path)
    return record


def with_proof(record: Record, files: Files, file: Path) -> Record:
    """Notes in the file how many of its codes were compared, which makes it a little larger."""
    if record.exactness is None:
        return record
    stamp(files.model, "qdeploy.proof", proof_text(record.exactness))
    write(files.model, file)
    return replace(record, size=replace(record.size, onnx=stored_bytes(file)))


def proof_text(exactness: Exactness) -> str:
    """What the file says of its own proof."""
    found = {
        "codes": exactness.compared,
        "differing": exactness.differing,
        "inputs": exactness.samples,
    }
    return json.dumps(found | {"processor": this_machine().cpu}, separators=(",", ":"))


def of_run(record: Record, trained: TrainedRun, section: ExportSection) -> Record:
    """With the run that the file came from, and its gates."""
    assert record.saturation is not None
    promised = with_promises(section, record.exactness, record.machine, record.saturation)
    found = record.accuracy, record.agreement, record.exactness, record.size.onnx
    return replace(
        record,
        name=trained.recipe.name,
        recipe=trained.recipe.model_dump(mode="json"),
        method=trained.recipe.quantize.method,
        gates=check_gates(promised, *found, record.scores),
        training=tuple(dict(epoch.row()) for epoch in trained.history),
    )


def record_json(record: Record, traced: bool) -> str:
    """The record as JSON; traced: with its tensors under "trace" as well."""
    if not traced:
        return record.to_json()
    tensors = record.exactness.tensors if record.exactness is not None else ()
    trace = [asdict(tensor) | {"share": tensor.share} for tensor in tensors]
    return json.dumps({**json.loads(record.to_json()), "trace": trace}, indent=2)


def check_file(file: Path, run: RunFolder) -> None:
    """Errors: QdeployError for a file that cannot be written or that the float network has."""
    if file.is_dir():
        raise QdeployError(f"cannot write {file}: it is a folder; give the name of a file with -o")
    if run.float_model.resolve() in (file.resolve(), file.with_suffix(".onnx").resolve()):
        raise QdeployError(f"{file} is where the float network goes; choose another file with -o")
    if not file.parent.is_dir():
        raise QdeployError(
            f"cannot write {file}: {file.parent} is no folder; make it, or choose another with -o"
        )
