"""What backward reads of a buffer that the same step of training moves, in code of torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

torch.library.define("qdeploy::snapshot", "(Tensor values) -> Tensor")


@torch.library.impl("qdeploy::snapshot", "CompositeExplicitAutograd")
def _copy(values: Tensor) -> Tensor:
    return values.clone()


def snapshot(values: Tensor) -> Tensor:
    """Values without a gradient that hang on such a buffer, as they are in this forward.

    torch.compile computes some of what backward needs from the inputs of the graph again, and takes
    a buffer for one even if the graph has moved it by then: silently, gradients are those of another
    range (pytorch/pytorch#197039). What an operator of ours gives is kept. Where nothing is
    compiled it is `values` itself.
    """
    if not torch.compiler.is_compiling():
        return values
    result: Tensor = torch.ops.qdeploy.snapshot(values)
    return result
