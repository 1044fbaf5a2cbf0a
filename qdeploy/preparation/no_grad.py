"""What forward computes under torch.no_grad: a graph has no such block, so its values are detached."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qdeploy.preparation.one_node import one_node

NO_GRAD = "no_grad"  # the mark in the meta of a node


@one_node
def detached(value: Any) -> Any:
    """The value, with no gradient behind any of its tensors."""
    return pytree.tree_map_only(Tensor, Tensor.detach, value)


def mark(node: fx.Node) -> None:
    """Notes at an operator that is being traced that gradients are off. A parameter keeps its own."""
    if node.op.startswith("call") and not torch.is_grad_enabled():
        node.meta[NO_GRAD] = True


def detach_values(graph: fx.Graph) -> None:
    """Detaches what leaves the blocks without gradients, where it leaves them."""
    for node in list(graph.nodes):
        if not node.meta.pop(NO_GRAD, False):
            continue
        for user in node.users:
            if user.target is operator.getitem:  # a tensor of several
                user.meta[NO_GRAD] = True
        outside = [user for user in node.users if NO_GRAD not in user.meta]
        if outside:
            with graph.inserting_after(node):
                inside = graph.call_function(detached, (node,))
            node.replace_all_uses_with(inside, delete_user_cb=outside.__contains__)
