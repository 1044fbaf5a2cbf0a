"""features: what modules of the user's give inside a prepared network, as the file has it.

A graph has no containers any more, so their outputs are found by their values: on the example input,
with quantizers that round nothing, the first tensor of the graph that is what the module gave in float.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.modes import full_float32
from qdeploy.layers.transparent import transparent
from qdeploy.preparation.forward import Forward
from qdeploy.preparation.graph import Interpreter, called_module, scope_of
from qdeploy.preparation.prepared import PreparedNetwork, graph_module

SAMPLES = 1000  # values that tell a tensor from others
CLOSE = 1e-4  # of the largest of them


def features(prepared: PreparedNetwork, names: Sequence[str]) -> Features:
    """A network that gives what modules inside of `prepared` compute as well, for distillation, say.

    It shares all parameters with `prepared`. In training as in evaluation, a feature is rounded as the
    file rounds it, if anything there reads it rounded.

    names   of modules as the float network has them: containers, layers, activations

    Errors: QdeployError for names of modules whose output is not there.
    """
    if not isinstance(prepared, PreparedNetwork):
        raise QdeployError(
            f"features takes what qdeploy.prepare returned, not {type(prepared).__name__}"
        )
    missing = [name for name in names if name not in prepared.plan.places]
    if missing:
        raise QdeployError(
            f"the prepared network does not compute the output of {', '.join(missing)}: a layer and its "
            "BatchNorm are one, and some operators stand in another order. It has those of "
            f"{', '.join(prepared.plan.places)}"
        )
    return Features(prepared, names)


class Features(nn.Module):
    """forward gives (what the prepared network gives, {name: feature})."""

    def __init__(self, prepared: PreparedNetwork, names: Iterable[str]) -> None:
        super().__init__()
        self.prepared = prepared
        self.names = list(names)
        places = {name: prepared.plan.places[name] for name in self.names}
        self.evaluation = with_values(prepared.plan.evaluation, places)
        self.in_training = with_values(prepared.plan.training, places)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        run = self.in_training if self.prepared.training else self.evaluation
        return run(self.prepared, *run.in_order(inputs, named))


def with_values(forward: Forward, places: dict[str, str]) -> Forward:
    """The same, which also gives the values of some nodes, {name: node}."""
    graph = copy.deepcopy(forward.graph)
    nodes = {node.name: node for node in graph.nodes}
    output = graph.output_node()
    values = {name: nodes.get(place) for name, place in places.items()}
    output.args = ((output.args[0], values),)
    return Forward(graph)


@torch.no_grad()
def what_modules_give(model: nn.Module, example: Sequence[Tensor]) -> dict[str, Fingerprint | None]:
    """By the name of each module that a network calls, in either mode: the fingerprint of what it gives.

    It is that of evaluation, and None for what gives no tensor or is called in training alone.
    """
    found: dict[str, Fingerprint | None] = {}

    def keep(name: str, module: nn.Module, output: Any) -> None:
        is_known = isinstance(output, Tensor) and not module.training
        found[name] = fingerprint(output) if is_known else found.get(name)

    copied = copy.deepcopy(model)
    for name, module in copied.named_modules():
        module.register_forward_hook(lambda m, _, output, name=name: keep(name, m, output))
    for training in (False, True):
        # A batch of one may not do for training, nor this example.
        with full_float32(), suppress(Exception):
            copied.train(training)(*(x.clone() for x in example))
    return found


@torch.no_grad()
def places_of(
    given: Mapping[str, Fingerprint | None], prepared: PreparedNetwork, example: Sequence[Tensor]
) -> dict[str, str]:
    """The nodes of the graph that give what modules gave in float, by the names of the modules.

    The example tells apart neither a new BatchNorm nor a dropout from what it reads, so that a node in the
    module's own forward comes first.
    """
    network = graph_module(copy.deepcopy(prepared).eval())
    run = Fingerprints(network)
    with full_float32(), transparent(network):
        run.run(*(x.clone() for x in example))
    joined = {name for name, layer in prepared.quantized_layers() if layer.norm is not None}
    found: dict[str, str] = {}
    for name, wanted in given.items():
        if not name or wanted is None or name in joined:  # a joined layer gives what its norm gives
            continue
        nodes = [node for node, seen in run.found if same(seen, wanted)]
        own = [node for node in nodes if f"{place_of(node)}.".startswith(f"{name}.")]
        if nodes:
            found[name] = rounded(own[-1] if own else nodes[0], network).name
    return found


def place_of(node: fx.Node) -> str:
    """The name of the module that a node calls, or of the one in whose forward it stands."""
    return str(node.target) if node.op == "call_module" else scope_of(node)


class Fingerprints(Interpreter):
    """Runs a graph and keeps the fingerprint of each tensor, with its node, in their order.

    Not of what quantizers give: here that is what they read.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.found: list[tuple[fx.Node, Fingerprint]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and not is_quantizer(n, self.module):
            self.found.append((n, fingerprint(value)))
        return value


Fingerprint = tuple[torch.Size, Tensor]


def fingerprint(x: Tensor) -> Fingerprint:
    """The shape of a tensor, and so many of its values, from all over it."""
    values = x.detach().flatten()
    return x.shape, values[:: max(1, len(values) // SAMPLES)].double().cpu()


def same(first: Fingerprint, second: Fingerprint) -> bool:
    """Whether two tensors are the same but for rounding."""
    (shape, values), (other_shape, others) = first, second
    if shape != other_shape or not values.numel():
        return False
    return bool((values - others).abs().max() <= CLOSE * values.abs().max())


def rounded(node: fx.Node, network: fx.GraphModule) -> fx.Node:
    """What rounds the value of a node, or the node itself."""
    return next((reader for reader in node.users if is_quantizer(reader, network)), node)


def is_quantizer(node: fx.Node, network: Any) -> bool:
    return isinstance(called_module(node, network), ActivationQuantizer)
