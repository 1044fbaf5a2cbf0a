"""Operators that write in place become operators that give what they would have written.

A quantizer behind an operator gives a tensor of its own, which no later write to the operator's
output reaches. Without such writes a value is what its node makes, whoever reads it and when.

One run of the graph shows which operators write, and which values lie in the memory that they
write to. Whoever reads such a value later reads what was written instead.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.layers.modes import evaluation_mode
from qdeploy.preparation.graph import Interpreter
from qdeploy.preparation.one_node import one_node

# What x += y and the like call, and what they are without the writing.
AUGMENTED = {
    getattr(operator, f"i{name.rstrip('_')}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
}


class WritingProxy(fx.Proxy):
    """Keeps x += y and x[i] = y in a graph as what they are: other names of x see them too."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _augmented(target: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _target in AUGMENTED:
    setattr(WritingProxy, f"__{_target.__name__}__", _augmented(_target))


def without_writes(network: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Rewrites a traced network in place; what it writes to its own parameters and buffers stays.

    Errors: QdeployError naming an operator that writes to what is read again, where no operator
    is known that gives the same.
    """
    memory = Memory(network)
    memory.fill(inputs)
    for node in list(network.graph.nodes):
        if node not in memory.written and node.target in AUGMENTED:
            node.target = AUGMENTED[node.target]  # h *= 2 of a number
        target = memory.target(node)
        if target is None:
            continue
        stale = [value for value in memory.sharing(target) if read_behind(value, node)]
        if not give_what_is_written(node, network) and stale:
            raise QdeployError(
                f"{node.target} (node {node.name}) writes in place to a tensor that is read again; "
                "let it return a new tensor"
            )
        if not all(memory.same_place(value, target) for value in stale):
            scatter_back(node, target, stale, memory)
            without_writes(network, inputs)  # what lies where is another question now
            return
        for value in stale:
            value.replace_all_uses_with(node, delete_user_cb=partial(operator.lt, node))
    views_as_reshapes(network.graph)
    network.recompile()


def views_as_reshapes(graph: fx.Graph) -> None:
    """A view asks for a layout in memory; where nothing writes, a reshape gives the same of any."""
    for node in graph.find_nodes(op="call_method", target="view"):
        if not any(isinstance(argument, torch.dtype) for argument in node.args):
            node.target = "reshape"
    for node in graph.find_nodes(op="call_method", target="view_as"):
        node.target = "reshape_as"


def read_behind(value: fx.Node, node: fx.Node) -> bool:
    return value < node and any(node < user for user in value.users)


class Memory(Interpreter):
    """Runs a graph once and sees in which memory its values lie, and who writes to it."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.network = network
        self.written: dict[fx.Node, fx.Node] = {}

    def fill(self, inputs: Sequence[Tensor]) -> None:
        """Runs it in the mode that it was traced in: in training alone a dropout makes a new tensor."""
        norms = nn.ModuleList(m for m in self.network.modules() if isinstance(m, _BatchNorm))
        devices = {x.device for x in inputs if x.is_cuda}
        with evaluation_mode(norms), torch.random.fork_rng(devices):
            self.run(*map(torch.clone, inputs))

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        before = {source: versions(self.env[source]) for source in n.all_input_nodes}
        value = super().run_node(n)
        changed = [source for source, seen in before.items() if versions(self.env[source]) != seen]
        spelled = any(before.values()) and is_spelled_in_place(
            n, self.network
        )  # not h += 1, a number
        if changed or spelled:
            self.written[n] = target = (changed or n.all_input_nodes)[0]
            return self.env[target]  # x[i] = y gives nothing
        return value

    def target(self, node: fx.Node) -> fx.Node | None:
        """The value that a node writes to; None if it writes to none, or to the network's own."""
        target = self.written.get(node)
        return None if target is None or self.path(target)[0].op == "get_attr" else target

    def sharing(self, target: fx.Node) -> list[fx.Node]:
        """The values that have an element in common with the target."""
        return [
            node
            for node, value in self.env.items()
            if any(overlap(*pair) for pair in product(tensors(value), tensors(self.env[target])))
        ]

    def same_place(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether two values are one tensor under two names."""
        values = self.env[first], self.env[second]
        return all(isinstance(value, Tensor) for value in values) and are_one(*values)

    def path(self, view: fx.Node) -> list[fx.Node]:
        """The views that lead to this one, from the node that made the tensor on."""
        places = addresses(self.env[view])
        sources = [n for n in view.all_input_nodes if addresses(self.env[n]) & places]
        return [view] if view in self.written or not sources else [*self.path(sources[0]), view]


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def versions(value: Any) -> list[int]:
    return [tensor._version for tensor in tensors(value)]


def addresses(value: Any) -> set[int]:
    """Of the memory that a value lies in; an empty tensor lies in none."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(value)} - {0}


def are_one(first: Tensor, second: Tensor) -> bool:
    places = [(x.data_ptr(), x.shape, x.stride()) for x in (first, second)]
    return places[0] == places[1]


def overlap(first: Tensor, second: Tensor) -> bool:
    """Whether they have an element in common."""
    if not addresses(first) & addresses(second):
        return False
    return are_one(first, second) or bool(torch.isin(indices(first), indices(second)).any())


def indices(x: Tensor) -> Tensor:
    """Where in its memory each element of x lies, counted in elements."""
    count = x.untyped_storage().nbytes() // x.element_size()
    return torch.arange(count).as_strided(x.size(), x.stride(), x.storage_offset())


def is_spelled_in_place(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a call asks to write in place, which a dropout does in training alone."""
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    position = position_of_inplace(node)
    given = node.args[position:] if position is not None else ()
    return twin_of(node.target) is not None or bool(node.kwargs.get("inplace", given == (True,)))


def position_of_inplace(node: fx.Node) -> int | None:
    """Where a function of torch.nn.functional takes `inplace`, its last argument."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return None
    names = [*inspect.signature(node.target).parameters]
    return names.index("inplace") if "inplace" in names else None


def give_what_is_written(node: fx.Node, network: fx.GraphModule) -> bool:
    """Makes a call give what it writes; False if nothing is known that does."""
    if node.op == "call_module":
        module: Any = network.get_submodule(str(node.target))
        known = hasattr(module, "inplace")
        if known:
            module.inplace = False
        return known
    if twin := twin_of(node.target):
        node.op, node.target = "call_method" if isinstance(twin, str) else "call_function", twin
        return True
    position = position_of_inplace(node)
    known = position is not None or "out" in node.kwargs
    node.args = node.args[:position]
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "out")}
    return known


def twin_of(target: Any) -> Callable[..., Any] | str | None:
    """What gives the values that a function or a method writes: torch.relu for torch.relu_, say."""
    name = target if isinstance(target, str) else target.__name__
    if target in AUGMENTED or name in OTHERWISE_CALLED:
        return AUGMENTED.get(target) or OTHERWISE_CALLED[name]
    plain = name.removesuffix("_")
    if plain == name:
        return None
    if isinstance(target, str):
        return plain if callable(getattr(Tensor, plain, None)) else None
    return getattr(F, plain, None) or getattr(torch, plain, None)


@one_node
def copied(x: Tensor, source: Tensor) -> Tensor:
    return source.expand_as(x).to(x.dtype)


@one_node
def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """x after x[index] = value."""
    y = x.clone()
    y[index] = value
    return y


OTHERWISE_CALLED: dict[str, Callable[..., Any]] = {
    "setitem": with_item,
    "copy_": copied,
    "fill_": torch.full_like,
    "zero_": torch.zeros_like,
}


def scatter_back(node: fx.Node, target: fx.Node, stale: Sequence[fx.Node], memory: Memory) -> None:
    """Puts what `node` gives in place of a view, its target, into the tensor that this is a view of.

    Views of 0, 1, 2 ... say where each value belongs. Whatever is stale is viewed anew.
    """
    graph, following = node.graph, node.next

    def view(x: fx.Node, step: tuple[fx.Node, fx.Node]) -> fx.Node:
        return graph.node_copy(step[1], lambda node: x if node is step[0] else node)

    def viewed(x: fx.Node, value: fx.Node) -> fx.Node:
        return reduce(view, pairwise(memory.path(value)), x)

    with graph.inserting_before(following):
        maker = memory.path(target)[0]
        places = viewed(graph.call_function(numbered, (maker,)), target)
        whole = graph.call_function(scattered, (maker, places, node))
        anew = {value: viewed(whole, value) for value in stale} | {node: viewed(whole, target)}
    for value, new in anew.items():
        value.replace_all_uses_with(new, delete_user_cb=lambda user: not user < following)


@one_node
def numbered(x: Tensor) -> Tensor:
    """0, 1, 2 ... in the shape of x."""
    return torch.arange(x.numel(), device=x.device).reshape(x.shape)


@one_node
def scattered(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """x with the values at these places, counted from 0."""
    return x.flatten().scatter(0, places.flatten(), values.flatten()).reshape(x.shape)
