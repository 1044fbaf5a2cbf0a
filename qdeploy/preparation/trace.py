"""From an nn.Module to a torch.fx graph whose nodes know their tensors."""

from __future__ import annotations

import copy
import fnmatch
import traceback
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.preparation.tracer import NetworkTracer, SizedTracer, TrainingOnly
from qdeploy.preparation.vocabulary import Argument, argument, operator_of

Inputs = Tensor | Sequence[Tensor]
TORCH = Path(torch.__file__).parent
WAYS_OUT = (
    "Ways out: name the module that does it in `leaves`, which keeps it whole and in float; move "
    "what depends on values out of forward; or mark a function with torch.fx.wrap."
)


def trace(model: nn.Module, example_input: Inputs, leaves: Iterable[str] = ()) -> fx.GraphModule:
    """A traced copy of the model, each node with its shape in `meta`.

    The graph is that of evaluation. Dropout and modules that do nothing in evaluation, such as
    stochastic depth, stay in it and work in training; for the rest of what only training does,
    there is a warning.

    leaves   globs of the names of modules that are kept whole

    Errors: QdeployError naming the line of the model that cannot be traced, the layer that does
    not take the example input, or what gives another value at every call.
    """
    inputs = as_inputs(example_input)
    check_leaves(model, leaves)
    check_modules(model)
    check_input(copy.deepcopy(model), inputs)
    training, evaluation = copy.deepcopy(model), copy.deepcopy(model).eval()
    for copied in (training, evaluation):
        keep_training_only(copied)
    network = traced(evaluation, inputs, leaves)
    check_modes(training.train(), network, inputs, leaves)
    annotate_shapes(network, inputs)
    check_repeatable(network, inputs)
    return network.train(model.training)


def as_inputs(example_input: Inputs) -> tuple[Tensor, ...]:
    """One tensor for each argument of forward; NumPy's arrays as tensors, its doubles as float32.

    Errors: QdeployError for what is neither.
    """
    alone = isinstance(example_input, Tensor | np.ndarray)
    parts = (example_input,) if alone else tuple(example_input)
    for part in parts:
        if not isinstance(part, Tensor | np.ndarray):
            raise QdeployError(
                f"a network takes tensors or NumPy arrays, not {type(part).__name__}: give one, or a "
                "tuple with one for each argument of forward"
            )
    return tuple(_as_tensor(part) for part in parts)


def _as_tensor(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part
    tensor = torch.from_numpy(part)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def described(inputs: Sequence[object]) -> str:
    """Types and shapes, for errors."""
    return ", ".join(
        f"{x.dtype} {[*x.shape]}" if isinstance(x, Tensor) else type(x).__name__ for x in inputs
    )


def traced(
    model: nn.Module, inputs: Sequence[Tensor], leaves: Iterable[str] = ()
) -> fx.GraphModule:
    """The graph of the model in the mode that it is in."""
    try:
        graph = graph_of(model, inputs, leaves)
    except Exception as error:
        raise QdeployError(
            f"torch.fx cannot trace {type(model).__name__}: {error}{_place(error)}. {WAYS_OUT}"
        ) from error
    # A pickled network is traced again where it is loaded, with torch.fx's own tracer.
    graph._tracer_cls = None
    network = fx.GraphModule(model, graph, type(model).__name__)
    dropout_as_module(network)
    return network


def graph_of(model: nn.Module, inputs: Sequence[Tensor], leaves: Iterable[str]) -> fx.Graph:
    """Traced without sizes, or with those of the inputs where forward computes with sizes."""
    try:
        return NetworkTracer(leaves, len(inputs)).trace(model)
    except Exception:
        return SizedTracer(leaves, inputs).trace(model)


def check_leaves(model: nn.Module, leaves: Iterable[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for glob in leaves:
        if not fnmatch.filter(names, glob):
            raise QdeployError(
                f"leaves: {glob!r} matches no module; the network's modules are {', '.join(names)}"
            )


def check_modules(model: nn.Module) -> None:
    """Errors: QdeployError for weights that are not float32, and for hooks, which a graph has not."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise QdeployError(
                f"{name} is {parameter.dtype}; prepare takes float32 networks: call network.float()"
            )
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise QdeployError(
                f"{name or type(model).__name__} has forward hooks, which the traced network would "
                "lose. Remove them: weight_norm, spectral_norm and pruning by remove_weight_norm, "
                "remove_spectral_norm and prune.remove, others by their handle"
            )


def keep_training_only(model: nn.Module) -> None:
    """Wraps each module of the user's that gives its input back in evaluation."""
    for name, module in list(model.named_modules()):
        if name and does_nothing_in_evaluation(module):
            model.set_submodule(name, TrainingOnly(module))


def does_nothing_in_evaluation(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn")
    if own or [*module.parameters(), *module.children()]:
        return False
    try:
        graph = fx.Tracer().trace(copy.deepcopy(module).eval())
    except Exception:
        return False
    first, *between, last = graph.nodes
    return first.op == "placeholder" and not between and last.args == (first,)


def check_modes(
    model: nn.Module, evaluation: fx.GraphModule, inputs: Sequence[Tensor], leaves: Iterable[str]
) -> None:
    """Warns of what forward does in training alone: a graph has one mode.

    Errors: QdeployError for a functional BatchNorm that only training updates.
    """
    try:
        training = traced(model, inputs, leaves)
    except QdeployError as error:
        warnings.warn(
            f"the network does in training what it does in evaluation: {error}", stacklevel=4
        )
        return
    if any(node.target is F.batch_norm for node in training.graph.nodes):
        raise QdeployError(
            "forward calls F.batch_norm, whose mode and statistics a traced network would freeze; "
            "use nn.BatchNorm1d, 2d or 3d"
        )
    evaluated = {str(node.target) for node in evaluation.graph.nodes}
    targets = [node for node in training.graph.nodes if str(node.target) not in evaluated]
    if targets:
        warnings.warn(
            f"in training, forward also runs {', '.join(_label(node) for node in targets)}; the "
            "prepared network leaves it out and does in training what it does in evaluation",
            stacklevel=4,
        )


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def check_input(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Runs the model once in evaluation mode. Errors: QdeployError naming the layer that fails."""
    running: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        module.register_forward_hook(lambda *_: running.pop() and None)
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    except Exception as error:
        shapes = " and ".join(str(list(x.shape)) for x in inputs)
        where = f" in {running[-1]}" if running and running[-1] else ""
        raise QdeployError(
            f"{type(model).__name__} cannot take an input of shape {shapes}{where}: {error}"
        ) from error


def check_repeatable(network: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Leaves the network in evaluation mode.

    Errors: QdeployError naming the first value that two runs disagree on.
    """
    with torch.no_grad():
        if _equal(network.eval()(*inputs), network(*inputs)):
            return
    first, second = Values(network), Values(network)
    first.run(*inputs)
    second.run(*inputs)
    for node, value in first.values.items():
        if not _equal(value, second.values[node]):
            raise QdeployError(
                f"{_label(node)} gives another value at every call, also in evaluation: a network "
                "that draws random numbers there cannot be exported; make it depend on self.training"
            )


class Values(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = pytree.tree_map_only(Tensor, torch.clone, value)
        return value


def _equal(first: Any, second: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
    return all(torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in tensors)


def _place(error: Exception) -> str:
    """' (file, line: code)' of the innermost frame outside torch and the tracer."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not file.is_relative_to(TORCH) and file.parent != Path(__file__).parent:
            return f" ({file}, line {frame.lineno}: {frame.line})"
    return ""


def dropout_as_module(network: fx.GraphModule) -> None:
    """Functional dropouts become modules: tracing froze their `training` argument."""
    for node in list(network.graph.nodes):
        row = operator_of(node, network)
        if row.module and row.silent and node.op == "call_function":
            name = f"dropouts.{node.name}"
            probability = argument(node, network, Argument("p", 1, 0.5))
            network.add_submodule(name, row.module(probability))
            with network.graph.inserting_after(node):
                replace(node, network.graph.call_module(name, (node.all_input_nodes[0],)))
    network.recompile()


def annotate_shapes(network: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Fills node.meta["tensor_meta"] by one run in evaluation mode."""
    was_training = network.training
    with torch.no_grad():
        ShapeProp(network.eval()).propagate(*inputs)
    network.train(was_training)


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
    """The node that alone reads what `node` gives; None where there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


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


def replace(node: fx.Node, by: fx.Node) -> None:
    """Erases a node whose readers read another one from now on."""
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
