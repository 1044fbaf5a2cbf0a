"""Values that must not be rounded to 0: what stands under a division, a square root or a logarithm.

An 8-bit step is a 255th of the largest value. A denominator or a variance below it would become 0,
and what it divides infinite. Such values stay in float, and so does what makes them small: the
terms of a sum, the squares of a mean, the tensor of a norm. So does an inverse, which is small beside
its largest value where it meets large ones.
"""

from __future__ import annotations

from torch import fx

from qdeploy.preparation.vocabulary import (
    ABSOLUTE,
    ADD,
    DEVIATION,
    DIVIDE,
    LOGARITHM,
    MEAN,
    MULTIPLY,
    NORM,
    POWER,
    RECIPROCAL,
    RECIPROCAL_ROOT,
    SQUARE,
    SQUARE_ROOT,
    SUM,
    VARIANCE,
    Argument,
    argument,
    gives_non_negative,
    is_clip,
    moves,
    operator_of,
)

SINGULAR = (RECIPROCAL, RECIPROCAL_ROOT, SQUARE_ROOT, LOGARITHM)
# They give 0 of zeros, and little of little.
SMALL_OF_SMALL = (ABSOLUTE, SQUARE, SUM, MEAN, NORM, DEVIATION, VARIANCE)


def small_values(network: fx.GraphModule) -> set[fx.Node]:
    """The nodes of a traced network whose values must not be rounded to 0."""
    found: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        if is_inverse(node, network) or any(
            is_singular(reader, node, network)
            or (reader in found and is_small_of_small(reader, node, network))
            for reader in node.users
        ):
            found.add(node)
    return found


def is_inverse(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it gives the inverse of a value, or of a power of it."""
    row = operator_of(node, network)
    if row is DIVIDE:
        return any(isinstance(numerator, int | float) for numerator in node.args[:1])
    return row in (RECIPROCAL, RECIPROCAL_ROOT) or (row is POWER and exponent_of(node, network) < 0)


def is_singular(reader: fx.Node, node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the reader has no value, or no slope, where `node` is 0."""
    row = operator_of(reader, network)
    if row is DIVIDE:
        return reader.args[1:2] == (node,)
    return row in SINGULAR or (row is POWER and exponent_of(reader, network) < 1)


def exponent_of(node: fx.Node, network: fx.GraphModule) -> float:
    """1 for one that is no number."""
    exponent = argument(node, network, Argument("exponent", 1))
    return exponent if isinstance(exponent, int | float) else 1.0


def is_small_of_small(reader: fx.Node, node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the reader gives little wherever `node` is small."""
    row = operator_of(reader, network)
    if row is ADD:
        (other,) = [part for part in reader.args if part is not node] or [node]
        in_sum = isinstance(other, fx.Node) and gives_non_negative(node, network)
        return in_sum or is_little(other)
    if row in (MULTIPLY, DIVIDE, POWER):
        return len(reader.all_input_nodes) == 1
    return row in SMALL_OF_SMALL or is_clip(reader, network) or moves(reader, network)


def is_little(value: object) -> bool:
    """Whether it is an epsilon: how large the other term becomes is not known here."""
    return isinstance(value, float) and abs(value) < 1
