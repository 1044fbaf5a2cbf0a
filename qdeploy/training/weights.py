"""Weights from a file into a network, or an error that lists what does not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.errors import QdeployError
from qdeploy.run import RunFolder
from qdeploy.training.checkpoint import Checkpoint, is_checkpoint, read_tensors

NAMED_IN_ERRORS = 4
COUNTER = "num_batches_tracked"  # older files have none, and nothing is lost without
PARALLEL = "module."  # what DataParallel puts before every name


def load_network_state(network: nn.Module, checkpoint: Checkpoint, shipped: bool = True) -> None:
    """Put a checkpoint's weights and buffers into `network`.

    `shipped` takes the buffers that belong to the weights that ship, for export; without it
    those that training goes on with. Raises QdeployError if the names or shapes do not fit.
    """
    overlay = checkpoint.shipped if shipped else {}
    _load(network, checkpoint.state | overlay, f"the checkpoint of {checkpoint.fingerprint}")


def load_float_weights(network: nn.Module, path: Path) -> None:
    """Put trained weights into a float network.

    `path` is a run folder (its best checkpoint), a checkpoint, or any file of torch.save that
    holds a state dict, bare or under `state_dict` or `model`, with or without the
    `module.` prefix of data-parallel training. Raises QdeployError if it cannot be read or the
    names or shapes do not fit.
    """
    file = RunFolder(path).best if path.is_dir() else path
    state = _find_state(read_tensors(file), file)
    if not any(name.startswith(PARALLEL) for name in network.state_dict()):
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise QdeployError(f"{file}: {name} holds values that are not finite; train it anew")
    counters = {n: b for n, b in network.state_dict().items() if n.endswith(COUNTER)}
    _load(network, counters | state, str(file))


def _find_state(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside what a file holds."""
    if isinstance(content, dict):
        for wrapper in ("state",) if is_checkpoint(content) else ("state_dict", "model"):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return content
    keys = f" (keys: {_few(list(map(str, content)))})" if isinstance(content, dict) else ""
    raise QdeployError(
        f"{file} holds no state dict{keys}; save one with torch.save(network.state_dict(), path), "
        "bare or under 'state_dict' or 'model'"
    )


def _load(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    misfits = _misfits(network.state_dict(), state)
    if misfits:
        raise QdeployError(
            f"{source} does not fit {type(network).__name__}: {'; '.join(misfits)}; "
            "give weights of this network, or change the network's options to those of the weights"
        )
    network.load_state_dict(state)


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each way in which `given` differs, naming a few tensors."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    named = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [f"{what}: {_few(names)}" for what, names in named.items() if names]


def _few(names: list[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
