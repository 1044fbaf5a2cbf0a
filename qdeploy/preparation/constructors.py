"""Tensors that forward makes of sizes: torch.arange(w), torch.zeros(n, 1), table.expand(n, -1).

torch.fx sees a call where a tensor of the graph is given to it, and these are given numbers. A number
that stays in the graph, because it is the size of a batch, would be an error, and what is drawn at
random would be the same ever after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qdeploy.preparation.one_node import one_node

RANDOM = ("rand", "randint", "randn", "randperm")
CONSTRUCTORS = (*RANDOM, "arange", "empty", "eye", "full", "linspace", "ones", "zeros")
METHODS = (
    "expand", "new_empty", "new_full", "new_ones", "new_zeros", "repeat", "reshape", "view",
)  # fmt: skip


@one_node
def made(name: str, device: torch.device, *args: Any, **options: Any) -> Tensor:
    """What the constructor torch.`name` makes, on the device of the network's input."""
    tensor: Tensor = getattr(torch, name)(*args, **options | {"device": device})
    return tensor


@one_node
def sized(name: str, tensor: Tensor, *args: Any, **options: Any) -> Tensor:
    """What a method gives for sizes of a tensor that is not computed in the graph."""
    given: Tensor = getattr(tensor, name)(*args, **options)
    return given


@contextmanager
def constructors_seen(tracer: fx.Tracer) -> Iterator[None]:
    """Inside the block, what is made of sizes of the graph, or at random, is a node."""
    places: list[tuple[Any, str]] = [(torch, name) for name in CONSTRUCTORS]
    places += [(Tensor, name) for name in METHODS]
    originals = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, original in originals:
        setattr(place, name, seen(tracer, place, name, original))
    try:
        yield
    finally:
        for place, name, original in originals:
            setattr(place, name, original)


def seen(tracer: Any, place: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which makes a node of itself where it is given a size of the graph."""

    def call(*args: Any, **options: Any) -> Any:
        of_graph = any(isinstance(x, fx.Proxy) for x in pytree.tree_leaves((args, options)))
        if tracer.running or not (of_graph or name in RANDOM):
            return original(*args, **options)
        if place is Tensor:
            return tracer.create_proxy("call_function", sized, (name, *args), options)
        options.pop("device", None)
        given = (name, tracer.input.device, *args)
        return tracer.create_proxy("call_function", made, given, options)

    return call
