"""A model repository for NVIDIA Triton Inference Server.

    <folder>/<name>/config.pbtxt    <folder>/<name>/labels.txt    <folder>/<name>/1/model.onnx

The fields of config.pbtxt are those of `ModelConfig` in Triton's model_config.proto; with a
max_batch_size the batch is left out of dims. What a client has to know of the pictures stands in the
parameters, which the server hands out with the configuration.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from qdeploy.deploy.contents import Contents, Port
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.target import find_target
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import files_of

SIGNATURE = "# Written by qdeploy export --triton, which replaces this folder."
MAX_BATCH_SIZE = 64

# The metadata that clients need; class names are in labels.txt.
FOR_CLIENTS = (
    "qdeploy.normalisation", "qdeploy.crop", "qdeploy.interpolation", "qdeploy.colours",
)  # fmt: skip

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def write_repository(model: Path, folder: Path, name: str, target: str = "cpu") -> Path:
    """Makes <folder>/<name> of an ONNX file with a free batch; it appears whole or not at all.

    Errors: QdeployError for a folder there that this function did not write, and for a file with
    a fixed batch.
    """
    name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
    place = folder / name
    _check_ours(place)
    contents = inspect(model)
    classes = json.loads(contents.metadata.get("qdeploy.classes", "[]"))
    config = model_config(contents, name, target, bool(classes))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            version = new / "1"
            version.mkdir(parents=True)
            first, *others = files_of(model)
            shutil.copyfile(first, version / "model.onnx")
            for weights in others:
                shutil.copyfile(weights, version / weights.name)
            (new / "config.pbtxt").write_text(config, "utf-8")
            if classes:
                (new / "labels.txt").write_text("".join(f"{label}\n" for label in classes), "utf-8")
            if place.exists():
                place.rename(old)
            new.rename(place)
    except OSError as error:
        raise QdeployError(
            f"cannot write {place}: {error.strerror or error}; choose another folder with --triton"
        ) from error
    return place


def model_config(contents: Contents, name: str, target: str, labelled: bool) -> str:
    """The text of config.pbtxt."""
    lines = [
        SIGNATURE,
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        *(f"input [ {_tensor(port, contents)} ]" for port in contents.inputs),
        *(f"output [ {_tensor(port, contents, labelled)} ]" for port in contents.outputs),
        "dynamic_batching { }",
        *_parameters(contents.metadata),
    ]
    if accelerator := find_target(target).accelerator:
        lines.append(f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    return "\n".join(lines) + "\n"


def _tensor(port: Port, contents: Contents, labelled: bool = False) -> str:
    batch, *sizes = port.shape
    if isinstance(batch, int):
        raise QdeployError(
            f"{contents.file} has a fixed batch of {batch}, and Triton batches requests as they "
            "come; export the network with a free batch"
        )
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in sizes)
    labels = ' label_filename: "labels.txt"' if labelled else ""
    type_name = TYPES[port.type]
    return f"{{ name: {_quoted(port.name)} data_type: {type_name} dims: [ {dims} ]{labels} }}"


def _parameters(metadata: Mapping[str, str]) -> Iterator[str]:
    for key in FOR_CLIENTS:
        if key in metadata:
            text = _quoted(metadata[key])
            yield f"parameters {{ key: {_quoted(key)} value {{ string_value: {text} }} }}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _check_ours(place: Path) -> None:
    config = place / "config.pbtxt"
    if not place.exists() and not place.is_symlink():
        return
    if not config.is_file() or not config.read_text("utf-8").startswith(SIGNATURE):
        raise QdeployError(
            f"{place} was not written by qdeploy and stays as it is; choose another folder with "
            "--triton, or move that one away"
        )
