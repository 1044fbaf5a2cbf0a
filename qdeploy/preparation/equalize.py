"""Cross-layer equalization: channels of one size, so that one scale serves all of them.

Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.1. Where nothing but positively homogeneous
operators, f(x / s) = f(x) / s for s > 0, stand between what gives a tensor and the layer that
reads it, channel i may be divided by s_i in the one and multiplied in the other: the network
computes the same. Here s is a power of two, so that it does so bit for bit. A ReLU6 is not such an
operator: the paper drops it, which changes the function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from qdeploy.layers.norm import BATCH_NORMS, gamma_beta
from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.layers.weight import per_channel
from qdeploy.preparation.graph import called_module, is_tuple, module_calls, only_reader, shape_of
from qdeploy.preparation.vocabulary import (
    FLATTEN,
    RESHAPE,
    is_homogeneous,
    operator_of,
)

ROUNDS = 20
LEAST = 1e-4  # of the largest channel: smaller ones count as so large


@torch.no_grad()
def equalize(network: fx.GraphModule) -> None:
    """Equalizes every pair of a traced network, in place, until none changes the others."""
    found = list(pairs(network))
    for _ in range(ROUNDS):
        changed = sum(pair.equalize() for pair in found)
        if not changed:
            return


@dataclass(frozen=True)
class Pair:
    """A layer or BatchNorm, and the layer that alone reads what it gives."""

    giver: Any
    reader: Any

    def equalize(self) -> bool:
        """Divides the giver and multiplies the reader; whether that changed anything."""
        factors = self.factors()
        divide_outputs(self.giver, factors)
        weight = self.reader.weight
        by_channel = grouped(self.reader, len(factors))
        weight.copy_((by_channel * factors.reshape(len(by_channel), 1, -1, 1)).reshape_as(weight))
        return bool((factors != 1).any())

    def factors(self) -> Tensor:
        """s [C]: the power of two next to sqrt(reach / weight), which would make a channel and the
        weights that read it of one size.
        """
        reach = output_reach(self.giver)
        weight = grouped(self.reader, len(reach)).abs().amax((1, 3)).flatten()
        if not reach.any() or not weight.any():
            return torch.ones_like(reach)
        return torch.exp2((at_least(reach) / at_least(weight)).log2().div(2).round())


def output_reach(giver: Any) -> Tensor:
    """How large the values of each output channel become, [C].

    A BatchNorm says it: 3 deviations around its shift. Of a layer without one it is the largest
    weight of the channel, as in the paper, or its bias if that is larger.
    """
    if isinstance(giver, BATCH_NORMS):
        gamma, beta = gamma_beta(giver)
        return beta.abs() + 3 * gamma.abs()
    largest: Tensor = giver.weight.abs().flatten(1).amax(1)
    return largest if giver.bias is None else torch.maximum(largest, giver.bias.abs())


def at_least(sizes: Tensor) -> Tensor:
    """Keeps the factor of a dead channel within bounds."""
    return sizes.clamp(min=LEAST * sizes.max().item())


def divide_outputs(giver: Any, by: Tensor) -> None:
    """Divides what a layer or a BatchNorm gives by `by`, [C]."""
    if isinstance(giver, BATCH_NORMS) and not giver.affine:
        giver.weight, giver.bias = (nn.Parameter(part, False) for part in gamma_beta(giver))
        giver.affine = True
    giver.weight.div_(per_channel(by, giver.weight))
    if giver.bias is not None:
        giver.bias.div_(by)


def grouped(reader: Any, channels: int) -> Tensor:
    """The weight of a layer by the channel that it multiplies: [groups, out, channels, ...].

    A Linear behind a flatten has several columns for each channel.
    """
    groups = getattr(reader, "groups", 1)
    weight: Tensor = reader.weight
    return weight.reshape(groups, weight.shape[0] // groups, channels // groups, -1)


def pairs(network: fx.GraphModule) -> Iterator[Pair]:
    """The pairs of a traced network, in the order it runs them.

    Each layer and norm is called once and shares its parameters with no other, and channels are
    the second axis throughout.
    """
    alone = called_alone(network)
    for node in network.graph.nodes:
        giver = called_module(node, network)
        if node not in alone or not gives_channels(node, giver):
            continue
        reader = reader_of(node, network)
        if reader in alone:
            yield Pair(giver, called_module(reader, network))


def gives_channels(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a module makes channels, on the second axis.

    Constants for each channel do not: nothing says how large the values are that they multiply.
    """
    if isinstance(module, BATCH_NORMS):
        return module.track_running_stats
    return has_channel_weights(module, node)


def has_channel_weights(module: nn.Module | None, tensor: fx.Node) -> bool:
    """Whether a layer's weight is [out, in, ...] and the channels of `tensor` are its second axis."""
    if type(module) not in WEIGHT_LAYERS or isinstance(module, _ConvTransposeNd):
        return False
    return type(module) is not nn.Linear or len(shape_of(tensor)) == 2


def called_alone(network: fx.GraphModule) -> set[fx.Node]:
    """Calls of modules that are called once and whose parameters are theirs alone."""
    owners = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    reads = [node for node in network.graph.nodes if node.op == "get_attr"]
    owners.update(id(attrgetter(str(read.target))(network)) for read in reads)
    return {
        calls[0]
        for name, calls in module_calls(network).items()
        if len(calls) == 1
        and all(owners[id(p)] == 1 for p in network.get_submodule(name).parameters())
    }


def reader_of(node: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """The layer that alone reads `node`, through homogeneous operators."""
    while user := only_reader(node):
        if has_channel_weights(called_module(user, network), node):
            return user
        if not is_homogeneous(user, network) or not keeps_channels(user, node, network):
            return None
        node = user
    return None


def keeps_channels(user: fx.Node, node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the channels stay where they are; a flatten may put several columns in each place."""
    if is_tuple(user):
        return False
    before, after = shape_of(node), shape_of(user)
    row = operator_of(user, network)
    if row in (FLATTEN, RESHAPE):
        return len(after) == 2 and after[0] == before[0]
    return row.keeps_channels and len(after) == len(before) and after[1] == before[1]
