"""Reading and changing a traced graph: what its nodes give, who reads it, and other nodes in their place."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

SCOPE = "scope"  # where a node is told it, see scope_of
FLOAT = "float"  # marks a node that stays float, see regions.py
SIZE_METHODS = (
    "size", "dim", "numel", "is_floating_point", "new_zeros", "new_ones", "new_full", "new_empty",
)  # fmt: skip
LIKE = (
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like,
    torch.randn_like,
)  # fmt: skip


def asks_for_size(node: fx.Node) -> bool:
    """Whether it reads no values of a tensor, but its shape, type or device."""
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.target in SIZE_METHODS if node.op == "call_method" else node.target in LIKE


def is_float_tensor(node: fx.Node) -> bool:
    """True for nodes whose value is a floating-point tensor, or a tuple that starts with one."""
    meta = node.meta.get("tensor_meta")
    if is_tuple(node):
        meta = meta[0] if meta else None
    return isinstance(meta, TensorMetadata) and meta.dtype.is_floating_point


def shape_of(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["tensor_meta"].shape
    return shape


def is_tuple(node: fx.Node) -> bool:
    """True for nodes that give several tensors: chunk, split, unbind."""
    meta = node.meta.get("tensor_meta")
    return isinstance(meta, tuple) and not isinstance(meta, TensorMetadata)


def float_inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes that it reads floating-point tensors from."""
    return [source for source in node.all_input_nodes if is_float_tensor(source)]


def only_reader(node: fx.Node) -> fx.Node | None:
    """The node that alone reads the values that `node` gives; None where there are none or several."""
    readers = [user for user in node.users if not asks_for_size(user)]
    return readers[0] if len(readers) == 1 else None


def needed_values(network: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values, not just their sizes, an output depends on."""
    needed: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        if node.op == "output" or (not asks_for_size(node) and not needed.isdisjoint(node.users)):
            needed.add(node)
    return needed


def module_calls(network: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Where each module is called, by its name, in the order of the graph."""
    calls: dict[str, list[fx.Node]] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return calls


def called_module(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def scope_of(node: fx.Node) -> str:
    """The name of the user's module whose forward makes the value; "" for the network itself.

    Of a node that rewriting made, that of what it reads.
    """
    if SCOPE in node.meta:
        return str(node.meta[SCOPE])
    return scope_of(node.all_input_nodes[0]) if node.all_input_nodes else ""


def free_name(name: str, network: nn.Module) -> str:
    """The name, with a number behind it if the network has something of that name."""
    owner, _, own = name.rpartition(".")
    known = dict(network.named_modules(remove_duplicate=False)).get(owner)
    names = itertools.chain([own], (f"{own}_{number}" for number in itertools.count(2)))
    free = next(own for own in names if not hasattr(known, own))
    return f"{owner}.{free}".lstrip(".")


def replace(node: fx.Node, by: fx.Node) -> None:
    """Erases a node whose readers read another one from now on."""
    if FLOAT in node.meta:
        by.meta[FLOAT] = True
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def insert_after(
    node: fx.Node, name: str, network: fx.GraphModule, readers: Collection[fx.Node] | None = None
) -> None:
    """Makes the readers of `node`, or only these, read what the module `name` makes of it."""
    reading = list(node.users if readers is None else readers)
    with network.graph.inserting_after(node):
        call = network.graph.call_module(name, (node,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user in reading)


class Interpreter(fx.Interpreter):
    """torch.fx's, which gives modules the graph's own lists, where a module may write to its list."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = {name: own_list(value) for name, value in kwargs.items()}
        return super().call_module(target, tuple(map(own_list, args)), own)


def own_list(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
