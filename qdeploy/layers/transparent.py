"""Transparent quantizers: the network multiplies by its float weights and rounds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class MayBeTransparent:
    """A module that computes what the float network does while it is transparent.

    It then observes nothing and counts no steps, so that only BatchNorms keep track of a batch.
    """

    transparent = False


@contextmanager
def transparent(network: nn.Module) -> Iterator[None]:
    """Inside the block a prepared network gives the float network's outputs, in either mode.

    Weights are float, activations are not rounded, products are the plain ones, and a norm that a
    method brings along is a BatchNorm. Gradients reach every latent parameter. A method that
    trains something other than the weight (SLB) multiplies by the weight that it started from.
    """
    modules = [m for m in network.modules() if isinstance(m, MayBeTransparent)]
    for module in modules:
        module.transparent = True
    try:
        yield
    finally:
        for module in modules:
            module.transparent = False
