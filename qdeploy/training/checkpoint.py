"""Checkpoints: written atomically, read without running code, refused with a reason."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.metrics import EpochRecord
from qdeploy.recipe import Recipe

VERSION = 4
BEFORE_TASKS = 3  # its history has top1 and top5 by name


@dataclass(frozen=True)
class Checkpoint:
    """A run after its last finished epoch.

    `fingerprint` says which network and method were trained. `state` is the network's state
    dict and `shipped` the entries of it that are others in what would be exported now ({}
    unless the integers were still being searched for). `scaler` is the state of the loss scaling
    of precision fp16, {} for others.
    """

    fingerprint: str
    history: list[EpochRecord]
    state: dict[str, Tensor]
    shipped: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path` atomically; raises QdeployError if it cannot be written."""
    history = [asdict(record) for record in checkpoint.history]
    with atomic_write(path) as file:
        torch.save({**vars(checkpoint), "history": history, "version": VERSION}, file)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; raises QdeployError if it is torn or none of qdeploy's."""
    content = read_tensors(path)
    if not is_checkpoint(content):
        raise QdeployError(
            f"{path} is no checkpoint of this version of qdeploy (format {VERSION}); give the "
            "last.pt or best.pt of a run, or train it again"
        )
    version, history = content.pop("version"), content.pop("history")
    if version == BEFORE_TASKS:
        history = [with_figures(record) for record in history]
    history = [EpochRecord(**record) for record in history]
    return Checkpoint(history=history, **content)


def with_figures(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a classification from before there were tasks, as it is now."""
    figures = {
        part: {name: record.pop(f"{part}_{name}") for name in ("loss", "top1", "top5")}
        for part in ("train", "test")
    }
    for found in figures.values():
        found["error1"] = 1 - found["top1"]
    return record | figures


def load_checkpoint_of(recipe: Recipe, path: Path) -> Checkpoint:
    """As load_checkpoint; raises QdeployError also for a checkpoint of another network or method."""
    checkpoint, wanted = load_checkpoint(path), fingerprint(recipe)
    if checkpoint.fingerprint != wanted:
        raise QdeployError(
            f"{path} is a checkpoint of {checkpoint.fingerprint}, and this run is of {wanted}; give "
            "the run the recipe that trained it, or choose another folder with -o"
        )
    return checkpoint


def fingerprint(recipe: Recipe) -> str:
    """What a checkpoint belongs to."""
    return f"network {recipe.model.network}, method {recipe.quantize.method}"


def is_checkpoint(content: object) -> bool:
    """True for what save_checkpoint wrote."""
    names = {"version", *(field.name for field in fields(Checkpoint))}
    readable = (VERSION, BEFORE_TASKS)
    return isinstance(content, dict) and content.keys() == names and content["version"] in readable


def read_tensors(path: Path) -> Any:
    """What torch.save wrote to `path`, tensors and plain containers only, onto the CPU."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise QdeployError(f"cannot read {path}: {error.strerror}; check the path") from error
    with file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise QdeployError(
                f"{path} holds a whole network or other Python objects, not tensors alone; save the "
                "weights with torch.save(network.state_dict(), path)"
            ) from error
        except Exception as error:  # zip's and torch's own: there is no common class
            raise QdeployError(
                f"{path} is truncated, or no file of tensors: copy it anew, or save a network's "
                f"weights with torch.save(network.state_dict(), path) ({type(error).__name__})"
            ) from error
