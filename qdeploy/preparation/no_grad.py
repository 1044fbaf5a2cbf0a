"""What forward computes under torch.no_grad: a graph has no such block, so its values are detached."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qdeploy.preparation.one_node import one_node
from qdeploy.preparation.sizes import is_number_of_sizes
from qdeploy.preparation.tracer import NO_GRAD


@one_node
def detached(value: Any) -> Any:
    """The value, with no gradient behind any of its tensors."""
    return pytree.tree_map_only(Tensor, Tensor.detach, value)


def detach_values(graph: fx.Graph) -> None:
    """Detaches what leaves the blocks without gradients, where it leaves them."""
    for node in list(graph.nodes):
        if not node.meta.pop(NO_GRAD, False) or is_number_of_sizes(node):
            continue
        for user in node.users:
            if user.target is operator.getitem and user.args[0] is node:  # a tensor of several
                user.meta[NO_GRAD] = True
        outside = [user for user in node.users if NO_GRAD not in user.meta]
        if outside:
            with graph.inserting_after(node):
                inside = graph.call_function(detached, (node,))
            node.replace_all_uses_with(inside, delete_user_cb=outside.__contains__)
