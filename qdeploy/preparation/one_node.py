"""Functions that every tracer of torch.fx keeps as one node, also where a pickle is traced again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.overrides import handle_torch_function, has_torch_function


def one_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes any tracer see a call of the function, not what it does."""

    @functools.wraps(function)
    def seen(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            return handle_torch_function(seen, given, *args, **kwargs)
        return function(*args, **kwargs)

    return seen
