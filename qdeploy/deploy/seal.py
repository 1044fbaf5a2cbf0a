"""A hash in the file of all else that is in it, so that a changed or damaged file is found out.

The hash is SHA-256 of the model without the entry itself and without the bytes of its
initialisers, serialised deterministically, followed by those bytes in their order. So it does
not depend on whether the weights lie in the file or beside it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from qdeploy.onnx_file import content

KEY = "qdeploy.sha256"


def seal(model: onnx.ModelProto) -> None:
    """Writes the hash into the metadata of a model whose weights are all in memory."""
    model.metadata_props.add(key=KEY, value=content_hash(model, Path()))


def stamp(model: onnx.ModelProto, key: str, value: str) -> None:
    """Writes one more entry into the metadata of a sealed model, and seals it anew."""
    kept = [entry for entry in model.metadata_props if entry.key not in (KEY, key)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=key, value=value)
    seal(model)


def is_intact(model: onnx.ModelProto, folder: Path) -> bool | None:
    """Whether the model is as it was sealed; None if it never was. folder: where it lies."""
    sealed = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    return None if sealed is None else sealed == content_hash(model, folder)


def content_hash(model: onnx.ModelProto, folder: Path) -> str:
    """The SHA-256 that `seal` writes, in hexadecimal."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del skeleton.metadata_props[:]
    skeleton.metadata_props.extend(kept)
    for tensor in skeleton.graph.initializer:
        for field in ("raw_data", "external_data", "data_location"):
            tensor.ClearField(field)
    digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(content(tensor, folder))
    return digest.hexdigest()
