"""Tracing a network that computes with the sizes of its tensors.

torch.fx runs forward with placeholders that know neither value nor size, so that it stops where a
network asks for one: padding "same", assertions, branches on an image's height. `SizedTracer` runs
the same forward with two example batches beside the placeholders, which differ in length and, where
the network takes that, in height and width. A size that both agree on is a number; one that
differs stays in the graph.

What forward decides by sizes is decided once, while it is traced. A guard keeps each decision in
the graph: `expect` refuses a batch for which it would be another one, `expect_sizes` all sizes but
those of the example where the network takes no others.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import has_side_effect, map_aggregate

from qdeploy.errors import QdeployError
from qdeploy.preparation.constructors import made
from qdeploy.preparation.graph import Interpreter, asks_for_size
from qdeploy.preparation.in_place import WritingProxy
from qdeploy.preparation.one_node import one_node
from qdeploy.preparation.tracer import NetworkTracer, ParameterProxy

TORCH = Path(torch.__file__).parent


def made_of_sizes(network: fx.GraphModule) -> set[fx.Node]:
    """What is computed of sizes and weights alone, such as a table of positions, or at random."""
    found: set[fx.Node] = set()
    for node in network.graph.nodes:
        sources = {source for source in node.all_input_nodes if source.op != "get_attr"}
        is_weight = node.op == "call_module" and not sources
        if is_weight or asks_for_size(node) or (sources and found.issuperset(sources)):
            found.add(node)
    return found


def is_number_of_sizes(node: fx.Node) -> bool:
    """Whether sizes, types and devices alone decide what it is: no value of a tensor does."""
    if asks_for_size(node):
        return True
    computed = node.op in ("call_function", "call_method") and node.target is not made
    return (
        computed and bool(sources := node.all_input_nodes) and all(map(is_number_of_sizes, sources))
    )


def longer(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs with one more sample."""
    return [torch.cat([x, x[:1]]) for x in inputs]


def of_other_sizes(model: nn.Module, inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """One more sample, of another height and width or another length; those that the model takes."""
    for resized, axes in itertools.product((twice, half), (slice(2, None), slice(1, 2))):
        batch = [functools.reduce(resized, range(x.ndim)[axes], x) for x in longer(inputs)]
        if any(a.shape[1:] != b.shape[1:] for a, b in zip(batch, inputs, strict=True)):
            try:
                with torch.no_grad():
                    copy.deepcopy(model)(*batch)
            except Exception:
                continue
            yield batch


def twice(x: Tensor, axis: int) -> Tensor:
    return torch.cat([x, x], axis)


def half(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 0, (x.shape[axis] + 1) // 2)


@has_side_effect
@one_node
def expect(condition: Any, answer: bool, place: str) -> None:
    """Errors: QdeployError where forward would not decide as it did when it was traced."""
    # A file is for the sizes of its example; a condition on an open one would fix it.
    if not torch.compiler.is_exporting() and bool(condition) != answer:
        raise QdeployError(
            f"the network does something else for inputs of this size{place}; it was traced with "
            "another one. Prepare it with an example input of the size that it will run on"
        )


@has_side_effect
@one_node
def expect_sizes(x: Tensor, sizes: Sequence[int]) -> None:
    """Errors: QdeployError where a sample of x has other sizes than these."""
    if not torch.compiler.is_exporting() and [*x.shape[1:]] != [*sizes]:
        raise QdeployError(
            f"the network was prepared for inputs of [N, {', '.join(map(str, sizes))}] alone; this one "
            f"is {[*x.shape]}. Prepare it with an example input of that size"
        )


def decisions(network: nn.Module) -> list[str]:
    """What forward decided by sizes while it was traced: " (file, line: code)" each."""
    if not isinstance(network, fx.GraphModule):
        return []
    places = (node.args[2] for node in network.graph.nodes if node.target is expect)
    return list(dict.fromkeys(map(str, places)))


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """' (file, line: code)' of the innermost frame outside torch and the tracer."""
    for frame in reversed([*frames]):
        file = Path(frame.filename)
        if not file.is_relative_to(TORCH) and file.parent != Path(__file__).parent:
            return f" ({file}, line {frame.lineno}: {frame.line})"
    return ""


class SizedTracer(NetworkTracer):
    """Knows the sizes of tensors while it traces.

    examples   two batches for each argument of forward; what differs in their sizes stays free
    """

    def __init__(self, leaves: Iterable[str], *examples: Sequence[Tensor]) -> None:
        super().__init__(leaves, len(examples[0]))
        self.examples = examples
        self.fixed = False  # whether a size of a sample became a number

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        graph = super().trace(root, concrete_args)
        samples = [{x.shape[1:] for x in pair} for pair in zip(*self.examples, strict=True)]
        if self.fixed and all(len(sizes) == 1 for sizes in samples):
            guard_sizes(graph, [[*sizes.pop()] for sizes in samples])
        return graph

    @functools.cached_property
    def interpreters(self) -> list[Interpreter]:
        """One for each example batch; torch.fx sets `root` and `graph` when it begins to trace."""
        made = [Interpreter(self.root, False, self.graph) for _ in self.examples]
        for interpreter, batch in zip(made, self.examples, strict=True):
            interpreter.args_iter = (x.clone() for x in batch)
        return made

    def placeholder(self, node: fx.Node) -> fx.Proxy:
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
            return values_of(argument)[batch] if isinstance(argument, fx.Proxy) else argument

        found = []
        for batch, interpreter in enumerate(self.interpreters):
            given = map_aggregate((args, kwargs), functools.partial(known, batch=batch))
            found.append(getattr(interpreter, kind)(target, *given))
        return found

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The answer that both batches give, of sizes; of tensors there is none."""
        values = values_of(obj)
        if not (values and is_number_of_sizes(obj.node)) or len(set(map(bool, values))) > 1:
            return super().to_bool(obj)
        answer = bool(values[0])
        line = user_line(traceback.extract_stack())
        self.create_node("call_function", expect, (obj.node, answer, line), {})
        return answer

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        values = values_of(obj)
        if not values or not isinstance(values[0], tuple | list):
            return super().iter(obj)
        parts: Any = obj
        return iter([parts[index] for index in range(len(values[0]))])


class Sizes(tuple[Any, ...]):
    """A torch.Size some of whose numbers stand in the graph."""

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return Sizes(part) if isinstance(index, slice) else part


class SizedProxy(WritingProxy):
    """A placeholder that knows the sizes of what it stands for."""

    tracer: SizedTracer
    values: tuple[Any, ...] = ()

    @property
    def shape(self) -> Sizes:
        return Sizes(self.size(axis) for axis in range(self.ndim))

    @property
    def ndim(self) -> int:
        return self.dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.values[0].dtype

    def dim(self) -> int:
        return self.values[0].dim()

    def size(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.shape
        sizes = {value.shape[dim] for value in self.values}
        if len(sizes) == 1:
            self.tracer.fixed |= dim != 0
            return sizes.pop()
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def __getattr__(self, name: str) -> Any:
        """What is no method, such as a device or a part of a named tuple, is a node of the graph."""
        if not self.values or callable(value := getattr(self.values[0], name)):
            return super().__getattr__(name)
        if isinstance(value, str):  # the type of a device
            return value
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        lengths = {len(value) for value in self.values}
        if len(lengths) > 1:
            raise TypeError("len() has to be a number, and this length is not: use shape[0]")
        return lengths.pop()


def values_of(proxy: fx.Proxy) -> tuple[Any, ...]:
    if isinstance(proxy, ParameterProxy):
        return proxy.value, proxy.value
    return proxy.values if isinstance(proxy, SizedProxy) else ()


def guard_sizes(graph: fx.Graph, sizes: Sequence[Sequence[int]]) -> None:
    """Each input is looked at before anything is computed."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        for node, of_sample in zip(inputs, sizes, strict=True):
            graph.call_function(expect_sizes, (node, [*of_sample]))
