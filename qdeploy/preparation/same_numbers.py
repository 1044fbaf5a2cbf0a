"""Random numbers that two networks agree on, though they draw them in another order or memory layout."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

SEED = 0


@contextmanager
def random_states_kept(devices: Iterable[torch.device]) -> Iterator[list[Generator]]:
    """After the block, what torch, Python and numpy draw next is what it was; gives torch's generators."""
    cuda = {device.index for device in devices if device.type == "cuda"}
    generators = [torch.default_generator, *(torch.cuda.default_generators[i] for i in cuda)]
    states = [generator.get_state() for generator in generators]
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(pythons)
        np.random.set_state(numpys)


@contextmanager
def same_numbers(devices: Iterable[torch.device]) -> Iterator[None]:
    """What torch draws inside the block depends on how many numbers it draws at once, and on nothing else.

    Python's and numpy's numbers are those of one seed. Afterwards every state is what it was.
    """
    with random_states_kept(devices) as generators:
        random.seed(SEED)
        np.random.seed(SEED)
        with SeededDraws(generators):
            yield


class SeededDraws(TorchDispatchMode):
    """Seeds anew before each operator that draws, and lets it fill tensors in the order of their axes."""

    def __init__(self, generators: list[Generator]) -> None:
        super().__init__()
        self.generators = generators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        for generator in self.generators:
            generator.manual_seed(SEED)
        ordered = pytree.tree_map_only(Tensor, Tensor.contiguous, args)
        result = func(*ordered, **kwargs)
        return args[0].copy_(result) if func._schema.is_mutable else result
