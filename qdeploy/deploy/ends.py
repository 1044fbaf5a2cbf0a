"""What the inputs and outputs of a file are called."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.preparation.trace import described


@dataclass(frozen=True)
class Ends:
    """The names of all inputs and outputs, in order."""

    inputs: list[str]
    outputs: list[str]


def end_names(
    network: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Ends:
    """As they were given, or as the network itself calls them.

    Errors: QdeployError for an input that the network does not take, and for names that are not one
    for each.
    """
    ends = Ends(_input_names(network, len(inputs)), _output_names(network, inputs))
    if input_names is not None:
        ends = Ends(_checked("input_names", input_names, ends.inputs), ends.outputs)
    if output_names is not None:
        ends = Ends(ends.inputs, _checked("output_names", output_names, ends.outputs))
    uses = Counter([*ends.inputs, *ends.outputs])
    shared = [name for name, count in uses.items() if count > 1]
    if shared:
        raise QdeployError(
            f"{', '.join(shared)} would be the name of several inputs or outputs of the file; give others by "
            "input_names or output_names"
        )
    return ends


def _input_names(network: nn.Module, count: int) -> list[str]:
    """ "input", or the names that forward gives to several."""
    names = list(inspect.signature(network.forward).parameters)[:count]
    return ["input"] if count == 1 else names


def _output_names(network: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """ "logits", or of several outputs their keys, or "output_0" and so on."""
    try:
        with torch.inference_mode():
            outputs = network(*inputs)
    except QdeployError:
        raise
    except Exception as error:
        raise QdeployError(
            f"{type(network).__name__} does not take an example input of {described(inputs)}: {error}. "
            "Give export one batch as the network is called with, [N, C, H, W] for images"
        ) from error
    paths = [path for path, _ in pytree.tree_leaves_with_path(outputs)]
    if len(paths) == 1 and not paths[0]:
        return ["logits"]
    keys = ["_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path in paths]
    return [f"output_{key}" if not key or key[0].isdigit() else key for key in keys]


def _checked(option: str, given: Sequence[str], own: list[str]) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    proper = all(isinstance(name, str) and name for name in names)
    if not proper or len(names) != len(own) or len(set(names)) < len(names):
        raise QdeployError(
            f"{option} is {given!r}; allowed: a name of its own for each of {', '.join(own)}"
        )
    return names
