"""ONNX files on the disk: one file, or two where protobuf's limit of 2 GiB asks for it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write

# What protobuf reads and writes in one piece, less a megabyte for nodes and names.
FILE_LIMIT = 2**31 - 2**20

# Constants below this many bytes stay in the graph: runtimes read shapes and bounds from there.
SMALLEST_OUTSIDE = 1024

# Operators that hand codes or values on as they are.
MOVERS = {
    "Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip

# Operators with two weights: what they multiply their input by, and their state.
RECURRENT = {"GRU", "LSTM", "RNN"}


def fits_one_file(model: onnx.ModelProto) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= FILE_LIMIT


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Writes a model whole or not at all; the weights of a large one lie beside it, in `<path>.<hash>.data`.

    The hash in the second file's name is that of its bytes, so that a model never meets the
    weights of another one, wherever the writing is cut off.
    """
    weights = None
    if not fits_one_file(model):
        model, weights = _with_weights_outside(model, path)
    _write_model(model, path)
    by_earlier_models = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}\.data")
    for left in path.parent.iterdir():
        if by_earlier_models.fullmatch(left.name) and left != weights:
            left.unlink()
    if weights is not None:
        onnx.checker.check_model(str(path), full_check=True)
    return path


def read(path: Path) -> onnx.ModelProto:
    """The model without the weights that lie beside it. Errors: QdeployError if it is none."""
    try:
        model = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise QdeployError(f"cannot read {path}: {error.strerror}; give an ONNX file") from error
    except DecodeError as error:
        raise _no_model(path, ", or one that was cut short; copy or export it again") from error
    if not path.stat().st_size:
        raise _no_model(path, ": it is empty; copy or export it again")
    if not model.graph.node:
        raise _no_model(path, ": it has no graph; give one that was exported")
    return model


def _no_model(path: Path, why: str) -> QdeployError:
    with path.open("rb") as file:
        if file.read(8)[4:] == b"ORTM":
            why = ", but of ONNX Runtime's own format (ORT); give the ONNX file that it was made of"
    return QdeployError(f"{path} is no ONNX file{why}")


def content(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The bytes of an initialiser, from the file or from beside it; b"" if it has typed fields."""
    if not uses_external_data(tensor):
        return tensor.raw_data
    place = {entry.key: entry.value for entry in tensor.external_data}
    path = folder / place["location"]
    length = int(place.get("length", -1))
    try:
        with path.open("rb") as file:
            file.seek(int(place.get("offset", 0)))
            found = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if length not in (-1, len(found)):
        raise QdeployError(f"{path} is cut short: copy it again, or export the model again")
    return found


def files_of(path: Path) -> list[Path]:
    """The model and the files that hold its weights."""
    tensors = filter(uses_external_data, read(path).graph.initializer)
    places = (entry for tensor in tensors for entry in tensor.external_data)
    names = sorted({entry.value for entry in places if entry.key == "location"})
    return [path, *(path.parent / name for name in names)]


def stored_bytes(path: Path) -> int:
    """What the model takes on the disk, with the weights beside it."""
    size = 0
    for file in files_of(path):
        try:
            size += file.stat().st_size
        except OSError as error:
            raise _unreadable(file, error) from error
    return size


def _unreadable(weights: Path, error: OSError) -> QdeployError:
    return QdeployError(
        f"cannot read {weights}, which holds weights of the model: {error.strerror}; "
        "keep the two files together"
    )


def _write_model(model: onnx.ModelProto, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def _with_weights_outside(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, Path]:
    """A copy whose large initialisers point into a file, which is written, and that file."""
    outside = onnx.ModelProto()
    outside.CopyFrom(model)
    large = [t for t in outside.graph.initializer if len(t.raw_data) >= SMALLEST_OUTSIDE]
    digest = hashlib.sha256()
    for tensor in large:
        digest.update(tensor.raw_data)
    weights = path.with_name(f"{path.name}.{digest.hexdigest()[:8]}.data")
    with atomic_write(weights) as file:
        for tensor in large:
            offset = file.tell()
            file.write(tensor.raw_data)
            onnx.external_data_helper.set_external_data(
                tensor, weights.name, offset, len(tensor.raw_data)
            )
            tensor.ClearField("raw_data")
    return outside, weights
