"""Modules of torch that hold several weights, written as the layers that these are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from qdeploy.layers.recurrent import Recurrent, is_recurrence
from qdeploy.preparation.attention import OpenAttention, OpenEncoder, can_open_attention

OPENED = (OpenAttention, Recurrent)  # whose weights have other names than in the float network


def with_open_modules(model: nn.Module) -> nn.Module:
    """A copy whose attention, encoders and recurrent layers are open; the model where it has none.

    A network that is one recurrent layer and nothing else stays as it is: a graph of it would have no node.
    """
    modules = model.named_modules(remove_duplicate=False)
    found = [
        name
        for name, module in modules
        if opened_kind(module) and (name or not is_recurrence(module))
    ]
    if not found:
        return model
    model = copy.deepcopy(model)
    written: dict[nn.Module, nn.Module] = {}  # one for all the names that a module has
    for name in reversed(found):  # what an encoder holds comes before it
        whole: Any = model.get_submodule(name)
        if whole not in written and (kind := opened_kind(whole)):
            written[whole] = kind(whole).train(whole.training)
        if not name:
            return written[whole]
        model.set_submodule(name, written.get(whole, whole))
    return model


def opened_kind(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    """What a module is written as; None for one that stays."""
    if type(module) is nn.TransformerEncoder:
        return OpenEncoder
    if can_open_attention(module):
        return OpenAttention
    return Recurrent if is_recurrence(module) else None
