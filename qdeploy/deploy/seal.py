"""Hashes in the file of all else that is in it, so that a changed or damaged file is found out.

`qdeploy.sha256` is SHA-256 of the model without the entry itself and without the bytes of its
initialisers, serialised deterministically, followed by those bytes in their order. So it does
not depend on whether the weights lie in the file or beside it.

`qdeploy.network` is the first half of the same hash of the graph, its opsets and its functions alone.
Where only the first one fails, a tool wrote into the metadata and the network is the one that was sealed.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from pathlib import Path

import onnx

from qdeploy.onnx_file import content

KEY = "qdeploy.sha256"
NETWORK = "qdeploy.network"


class Seal(str, Enum):
    """How a file stands to what was sealed. `lost`: qdeploy wrote it, and its hash is gone."""

    WHOLE = "whole"
    METADATA = "metadata changed"
    CHANGED = "changed"
    LOST = "lost"
    NONE = "none"


def seal(model: onnx.ModelProto) -> None:
    """Writes the hashes into the metadata of a model whose weights are all in memory, as its last entries."""
    seal_network(model)
    _replace(model, KEY, content_hash(model, Path()))


def seal_network(model: onnx.ModelProto) -> None:
    """Writes the hash of the network alone; one of the whole file that was broken stays so."""
    _replace(model, NETWORK, network_hash(model, Path()))


def stamp(model: onnx.ModelProto, key: str, value: str) -> None:
    """Writes one more entry into the metadata of a sealed model, and seals it anew."""
    _replace(model, key, value)
    seal(model)


def state(model: onnx.ModelProto, folder: Path) -> Seal:
    """How the model stands to what was sealed. folder: where it lies."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    if KEY not in found:
        return Seal.LOST if _is_ours(model) else Seal.NONE
    if found[KEY] == content_hash(model, folder):
        return Seal.WHOLE
    same = NETWORK in found and found[NETWORK] == network_hash(model, folder)
    return Seal.METADATA if same else Seal.CHANGED


def added_entries(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The keys of what a tool added to the metadata; [] where that is not all that changed."""
    without = onnx.ModelProto()
    without.CopyFrom(model)
    keys = [entry.key for entry in model.metadata_props]
    end = keys.index(KEY) + 1  # the last entry when it was sealed
    del without.metadata_props[end:]
    return keys[end:] if state(without, folder) is Seal.WHOLE else []


def content_hash(model: onnx.ModelProto, folder: Path) -> str:
    """The SHA-256 that `seal` writes, in hexadecimal."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    _drop(skeleton, KEY)
    return _hash(skeleton, model, folder)


def network_hash(model: onnx.ModelProto, folder: Path) -> str:
    """The first 32 digits of the hash of what a runtime computes with."""
    network = onnx.ModelProto(
        graph=model.graph, opset_import=model.opset_import, functions=model.functions
    )
    return _hash(network, model, folder)[:32]


def _hash(skeleton: onnx.ModelProto, model: onnx.ModelProto, folder: Path) -> str:
    """skeleton: a copy of what of the model is hashed, which loses the bytes of its initialisers."""
    for tensor in skeleton.graph.initializer:
        for field in ("raw_data", "external_data", "data_location"):
            tensor.ClearField(field)
    digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(content(tensor, folder))
    return digest.hexdigest()


def _is_ours(model: onnx.ModelProto) -> bool:
    names = (model.producer_name, model.graph.name)
    keys = (entry.key for entry in model.metadata_props)
    return "qdeploy" in names or any(key.startswith("qdeploy.") for key in keys)


def _replace(model: onnx.ModelProto, key: str, value: str) -> None:
    """The entry comes last; one of that key before it goes."""
    _drop(model, key)
    model.metadata_props.add(key=key, value=value)


def _drop(model: onnx.ModelProto, key: str) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
