"""Regions that are left in float: all that lies between two places of a network, "first -> last" in `leaves`.

A place is a module of the user's, or a node of the graph: an input, an operator, `output`. The region is
what depends on the first and what the last depends on, with both. Its layers stay float, and no value
that is made and read inside of it is rounded. Unlike a module that is kept whole it is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.preparation.graph import FLOAT, SCOPE, scope_of

ARROW = "->"


def is_region(leaf: str) -> bool:
    return ARROW in leaf


def mark_regions(network: fx.GraphModule, regions: Iterable[str]) -> None:
    """Marks the nodes of a traced network that are to stay float.

    Errors: QdeployError for names of nothing, and where nothing leads from the first to the last.
    """
    for region in regions:
        first, last = ends_of(region)
        starts, ends = nodes_of(first, region, network), nodes_of(last, region, network)
        inside = between(starts, ends)
        if not inside:
            turned = between(ends, starts)
            hint = f"; there is from {last} to {first}" if turned else ""
            raise QdeployError(
                f"leaves: {region!r} names no region, since no path leads from {first} to {last}{hint}"
            )
        for node in inside:
            node.meta[FLOAT] = True


def ends_of(region: str) -> tuple[str, str]:
    """The two names. Errors: QdeployError if there are not two."""
    names = [name.strip() for name in region.split(ARROW)]
    if len(names) != 2 or not all(names):
        raise QdeployError(
            f"leaves: given {region!r}; a region is two names of modules or nodes, such as "
            '"head.decode -> head.nms", and anything else a glob of modules'
        )
    return names[0], names[1]


def nodes_of(name: str, region: str, network: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a module's forward, or the one of this name.

    Errors: QdeployError if there is none.
    """
    nodes = list(network.graph.nodes)
    places = {
        node: str(node.target) if node.op == "call_module" else scope_of(node) for node in nodes
    }
    found = [node for node in nodes if f"{places[node]}.".startswith(f"{name}.")]
    if not found:
        found = [node for node in nodes if node.name == name]
    if not found:
        modules = [*dict.fromkeys(filter(None, places.values()))]
        operators = [node.name for node in nodes if node.op != "call_module"]
        raise QdeployError(
            f"leaves: {region!r} has {name}, and the network runs no module and no node of that name."
            f"{did_you_mean(name, [*modules, *operators])} Its modules are {', '.join(modules)}; its other "
            f"nodes {', '.join(operators)}"
        )
    return found


def between(starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> set[fx.Node]:
    """What depends on a start and what an end depends on, both themselves among them."""
    if not starts or not ends:
        return set()
    nodes = list(starts[0].graph.nodes)
    behind, before = set(starts), set(ends)
    for node in nodes:
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if not before.isdisjoint(node.users):
            before.add(node)
    return behind & before


def float_nodes(network: fx.GraphModule) -> set[fx.Node]:
    """The marked nodes, and what rewriting wrote in their place."""
    marked = {node for node in network.graph.nodes if node.meta.get(FLOAT)}
    found = between([*marked], [*marked])
    for node in reversed(network.graph.nodes):
        if SCOPE not in node.meta and node.users and found.issuperset(node.users):
            found.add(node)
    return found
