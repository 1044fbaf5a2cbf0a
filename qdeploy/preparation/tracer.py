"""torch.fx's tracer, which keeps whole what a graph of operators would lose.

Besides the modules that torch.fx keeps (those of torch.nn), these stay one node each: modules that
do nothing in evaluation, a `torch.autograd.Function` of the user's with its backward, and what the
user names in `leaves`. A network that asks for the sizes of its tensors is traced by sizes.py.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from qdeploy.layers.recurrent import Recurrent
from qdeploy.preparation.constructors import constructors_seen
from qdeploy.preparation.graph import SCOPE
from qdeploy.preparation.in_place import WritingProxy
from qdeploy.preparation.one_node import one_node

NO_GRAD = "no_grad"  # marks a node that forward computes without gradients: see no_grad.py


class TrainingOnly(nn.Module):
    """A module that does nothing in evaluation, such as stochastic depth, kept whole for training."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) if self.training else x


@one_node
def by_mode(evaluation: Any, training: Any) -> Any:
    """Stands in a graph for two values, of which each mode has one: see modes.py."""
    return evaluation


class AutogradFunction(nn.Module):
    """A torch.autograd.Function of the user's as a module: in a graph it keeps its backward.

    function   applied to what the module is called with
    """

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)

    def extra_repr(self) -> str:
        return self.function.__name__


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
        self.running = False  # operators on examples: see sizes.py

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with (
            whole_functions(self),
            constructors_seen(self),
            plain_checkpoints(),
            torch.enable_grad(),
        ):
            return super().trace(root, concrete_args)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        running = (path for path, _ in self.module_stack.values() if path != node.target)
        node.meta[SCOPE] = ["", *running][-1]
        if node.op.startswith("call") and not torch.is_grad_enabled():
            node.meta[NO_GRAD] = True
        return node

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
        if chosen or isinstance(m, TrainingOnly | Recurrent) or is_plain_norm(m):
            return True
        return not isinstance(m, TRANSFORMERS) and super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        """An OrderedDict stays one: torch.fx makes a dict of it."""
        if type(a) is OrderedDict:
            items = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        proxy = ParameterProxy(node, self) if node.op == "get_attr" else self.placeholder(node)
        if node.op == "placeholder":
            self.input = proxy
        return proxy

    def placeholder(self, node: fx.Node) -> fx.Proxy:
        return WritingProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        found = super().getattr(attr, attr_val, parameter_proxy_cache)
        if isinstance(found, ParameterProxy):
            found.value = attr_val
        return found

    def call_function_whole(
        self, function: type[torch.autograd.Function], args: Any, kwargs: Any
    ) -> fx.Proxy:
        """A node for a function of the user's, in place of the operators of its forward."""
        functions: Any = self.root
        if not hasattr(functions, "functions"):
            functions.functions = nn.Module()
        count = len(list(functions.functions.children()))
        name = f"{function.__name__}_{count}"
        functions.functions.add_module(name, AutogradFunction(function))
        with torch.enable_grad():  # its own forward runs without
            return self.create_proxy("call_module", f"functions.{name}", args, kwargs)


def is_plain_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm, or a subclass of one that computes the same."""
    forwards = (_BatchNorm.forward, SyncBatchNorm.forward)
    return isinstance(module, _BatchNorm) and type(module).forward in forwards


class ParameterProxy(WritingProxy):
    """A placeholder for a parameter: all that is no value is known of it."""

    KNOWN = ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "requires_grad")

    value: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value, name) if name in self.KNOWN else super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.value)


@contextmanager
def whole_functions(tracer: NetworkTracer) -> Iterator[None]:
    """Inside the block, functions of the user's that are applied to placeholders become nodes.

    `apply` may be known under another name (`sign = Sign.apply`), but always comes to `forward`.
    """
    functions = [f for f in subclasses(torch.autograd.Function) if not is_of_torch(f)]
    own = [(function, vars(function).get("forward")) for function in functions]
    for function in functions:
        function.forward = staticmethod(seen_by(tracer, function))
    try:
        yield
    finally:
        for function, forward in own:
            if forward is None:
                del function.forward
            else:
                function.forward = forward


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Inside the block, a checkpoint runs its part of the network as if there were none.

    The reentrant one runs it without gradients, to run it again when they are asked for.
    """
    CheckpointFunction.apply = (  # type: ignore[method-assign]
        lambda function, preserve_rng_state, *args: function(*args)
    )
    try:
        yield
    finally:
        del CheckpointFunction.apply  # which is inherited


def seen_by(tracer: NetworkTracer, function: Any) -> Callable[..., Any]:
    """The forward of a function, which makes a node of itself where it is given a placeholder."""
    forward = function.forward
    has_context = function.setup_context is torch.autograd.Function.setup_context

    def seen(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(x, fx.Proxy) for x in pytree.tree_leaves((args, kwargs))):
            return forward(*args, **kwargs)
        return tracer.call_function_whole(function, args[has_context:], kwargs)

    return seen


def subclasses(kind: type) -> Iterator[Any]:
    below: Any
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


def is_of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"
