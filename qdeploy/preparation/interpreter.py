"""Runs a graph node by node, as its code does."""

from __future__ import annotations

from typing import Any

from torch import fx


class Interpreter(fx.Interpreter):
    """torch.fx's, which gives modules the graph's own lists, where a module may write to its list."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = {name: own_list(value) for name, value in kwargs.items()}
        return super().call_module(target, tuple(map(own_list, args)), own)


def own_list(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
