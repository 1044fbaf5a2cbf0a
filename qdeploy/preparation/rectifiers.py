"""Where a ReLU stands: right behind its layer, and in training inside of the quantizer behind it."""

from __future__ import annotations

import operator

from torch import fx

from qdeploy.layers.activation import ActivationQuantizer, Rectifier
from qdeploy.preparation.quantizer_placement import (
    PLAIN_RELUS,
    ZEROING,
    is_mover,
    is_rectifier,
    kind_of,
)
from qdeploy.preparation.trace import called_module, is_float_tensor


def rectifiers_first(network: fx.GraphModule) -> None:
    """Rewrites relu(move(x)) as move(relu(x)), the same values, so that a ReLU joins its Conv."""
    for node in list(network.graph.nodes):
        if not is_rectifier(node, network):
            continue
        while _can_pass(node, mover := node.all_input_nodes[0], network):
            source = mover.all_input_nodes[0]
            node.replace_all_uses_with(mover)
            mover.replace_input_with(source, node)
            node.replace_input_with(mover, source)
            mover.prepend(node)
            node.meta["tensor_meta"] = source.meta["tensor_meta"]
    network.recompile()


def _can_pass(rectifier: fx.Node, mover: fx.Node, network: fx.GraphModule) -> bool:
    """True for an operator that moves one tensor, which nothing but the rectifier reads."""
    if len(mover.users) != 1 or not is_mover(mover, network):
        return False
    # A clamp may not leave zeros as they are, and its bounds are not those of scaled values.
    if kind_of(mover, network) in ZEROING and kind_of(rectifier, network) not in PLAIN_RELUS:
        return False
    sources = [source for source in mover.all_input_nodes if is_float_tensor(source)]
    alone = sources == mover.all_input_nodes[:1] and len(sources[0].users) == 1
    return alone and kind_of(mover, network) is not operator.getitem


def rectifiers_into_quantizers(network: fx.GraphModule) -> None:
    """Makes each plain ReLU that only quantizers with a range from 0 read a `Rectifier`."""
    calls: dict[str, list[fx.Node]] = {}
    for node in network.graph.nodes:
        if isinstance(called_module(node, network), ActivationQuantizer):
            calls.setdefault(str(node.target), []).append(node)
    for name, places in calls.items():
        quantizer = network.get_submodule(name)
        assert isinstance(quantizer, ActivationQuantizer)
        sources = [place.all_input_nodes[0] for place in places]
        if not quantizer.can_rectify or not all(_is_its_own(s, network) for s in sources):
            continue
        quantizer.rectifies = True
        for source in sources:
            rectifier = f"rectifiers.{source.name}"
            network.add_submodule(rectifier, Rectifier())
            source.op, source.target = "call_module", rectifier
            source.args, source.kwargs = tuple(source.all_input_nodes), {}
    network.recompile()


def _is_its_own(source: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the node is a ReLU that nothing else reads."""
    return kind_of(source, network) in PLAIN_RELUS and len(source.users) == 1
