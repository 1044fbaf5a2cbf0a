"""Batches that ranges were measured without, since they had values that are not finite."""

from __future__ import annotations

import warnings

from torch import nn

from qdeploy.layers.host import on_host
from qdeploy.layers.learned_activation import MEASURING


def left_out_of(network: nn.Module) -> dict[str, int]:
    """{name of a quantizer: how many batches it left out}, of those that left some out."""
    named = ((n, m) for n, m in network.named_modules() if isinstance(m, MEASURING))
    counts = {name: int(on_host(module.left_out)) for name, module in named}
    return {name: count for name, count in counts.items() if count}


def warn_of_left_out(network: nn.Module) -> None:
    """Says which ranges were measured without some batches."""
    if not (counts := left_out_of(network)):
        return
    name = max(counts, key=counts.__getitem__)
    others = f", and some at {len(counts) - 1} more" if len(counts) > 1 else ""
    warnings.warn(
        f"{counts[name]} batches with values that are not finite were left out at {name}{others}: the "
        "ranges are those of the other batches. Look for nan and inf in the images and the loss",
        stacklevel=3,
    )
