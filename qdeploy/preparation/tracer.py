"""The tracers: torch.fx's own, and one for networks that compute with the sizes of their tensors.

torch.fx runs forward with placeholders that know neither value nor size, so that it stops where a
network asks for one: padding "same", assertions, branches on an image's height. `SizedTracer` runs
the same forward with two example batches of different length beside the placeholders. A size that
both agree on is a number; one that differs depends on the batch and stays in the graph.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from qdeploy.preparation.in_place import WritingProxy


class TrainingOnly(nn.Module):
    """A module that does nothing in evaluation, such as stochastic depth, kept whole for training."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) if self.training else x


# Modules of torch.nn that are made of others.
TRANSFORMERS = (
    nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)  # fmt: skip


class NetworkTracer(fx.Tracer):
    """torch.fx's tracer; modules whose name matches one of the globs `leaves` stay whole.

    count   how many tensors forward is given; its other arguments keep their defaults
    """

    def __init__(self, leaves: Iterable[str], count: int) -> None:
        super().__init__()
        self.leaves = tuple(leaves)
        self.count = count

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """What forward is called with: torch.fx would make an input of every argument."""
        _, *names = inspect.signature(root_fn).parameters
        if len(names) <= self.count:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in names[: self.count]]
        return root_fn, [self.root, *inputs]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        chosen = any(fnmatch.fnmatchcase(module_qualified_name, glob) for glob in self.leaves)
        if chosen or isinstance(m, TrainingOnly):
            return True
        return not isinstance(m, TRANSFORMERS) and super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> WritingProxy:
        return WritingProxy(node, self)


class SizedTracer(NetworkTracer):
    """Knows the sizes of tensors while it traces; the batch stays free.

    inputs   an example batch for each argument of forward
    """

    def __init__(self, leaves: Iterable[str], inputs: Sequence[Tensor]) -> None:
        super().__init__(leaves, len(inputs))
        self.examples = [x.clone() for x in inputs], [torch.cat([x, x[:1]]) for x in inputs]
        self.running = False

    @functools.cached_property
    def interpreters(self) -> list[fx.Interpreter]:
        """One for each example batch; torch.fx sets `root` and `graph` when it begins to trace."""
        made = [fx.Interpreter(self.root, False, self.graph) for _ in self.examples]
        for interpreter, batch in zip(made, self.examples, strict=True):
            interpreter.args_iter = iter(batch)
        return made

    def proxy(self, node: fx.Node) -> SizedProxy:
        return SizedProxy(node, self)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *more: Any,
        **named: Any,
    ) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        if kind != "output" and isinstance(proxy, SizedProxy):
            self.running = True
            try:
                proxy.values = tuple(self.values(kind, target, args, kwargs))
            finally:
                self.running = False
        return proxy

    # While torch.fx traces, a module that is called writes a node, and so does one whose parameter
    # is read. What runs on the examples does neither.
    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    @torch.no_grad()
    def values(self, kind: str, target: Any, args: Any, kwargs: Any) -> list[Any]:
        """What the operator gives for each example batch."""

        def known(argument: Any, batch: int) -> Any:
            return argument.values[batch] if isinstance(argument, SizedProxy) else argument

        found = []
        for batch, interpreter in enumerate(self.interpreters):
            given = map_aggregate((args, kwargs), functools.partial(known, batch=batch))
            found.append(getattr(interpreter, kind)(target, *given))
        return found

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The answer that both batches give, of sizes; of tensors there is none."""
        values = values_of(obj)
        if not values or isinstance(values[0], Tensor) or len(set(map(bool, values))) > 1:
            return super().to_bool(obj)
        return bool(values[0])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        values = values_of(obj)
        if not values or not isinstance(values[0], tuple | list):
            return super().iter(obj)
        parts: Any = obj
        return iter([parts[index] for index in range(len(values[0]))])


class SizedProxy(WritingProxy):
    """A placeholder that knows the sizes of what it stands for."""

    values: tuple[Any, ...] = ()

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.size(axis) for axis in range(self.ndim))

    @property
    def ndim(self) -> int:
        return self.dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.values[0].dtype

    @property
    def device(self) -> torch.device:
        return self.values[0].device

    def dim(self) -> int:
        return self.values[0].dim()

    def size(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.shape
        sizes = {value.shape[dim] for value in self.values}
        if len(sizes) == 1:
            return sizes.pop()
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def __len__(self) -> int:
        lengths = {len(value) for value in self.values}
        if len(lengths) > 1:
            raise TypeError("the length depends on the batch")
        return lengths.pop()


def values_of(proxy: fx.Proxy) -> tuple[Any, ...]:
    return proxy.values if isinstance(proxy, SizedProxy) else ()
