"""From an nn.Module to a torch.fx graph whose nodes know their tensors."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from qdeploy.errors import QdeployError
from qdeploy.preparation.functional_modules import dropouts_as_modules, norms_as_modules
from qdeploy.preparation.graph import Interpreter, asks_for_size
from qdeploy.preparation.in_place import without_writes
from qdeploy.preparation.modes import join_modes
from qdeploy.preparation.no_grad import detach_values
from qdeploy.preparation.parametrizations import folded_copy
from qdeploy.preparation.requirements import (
    check_input,
    check_leaves,
    check_modules,
    check_repeatable,
)
from qdeploy.preparation.sizes import SizedTracer, longer, of_other_sizes, user_line
from qdeploy.preparation.tracer import NetworkTracer, TrainingOnly

Inputs = Tensor | Sequence[Tensor]
WAYS_OUT = (
    "Ways out: name the module that does it in `leaves`, which keeps it whole and in float; move "
    "what depends on values out of forward; or mark a function with torch.fx.wrap."
)


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


def trace(model: nn.Module, example_input: Inputs, leaves: Iterable[str] = ()) -> fx.GraphModule:
    """A traced copy of the model as it evaluates, each node with its shape in `meta`.

    Dropout, BatchNorm and modules that do nothing in evaluation, such as stochastic depth, work in
    training as well.

    leaves   globs of the names of modules that are kept whole

    Errors: QdeployError naming the line of the model that cannot be traced, the layer that does
    not take the example input, or what gives another value at every call.
    """
    return Tracing(model, as_inputs(example_input), leaves).network(both_modes=False)


def trace_both_modes(
    model: nn.Module, example_input: Inputs, leaves: Iterable[str] = ()
) -> fx.GraphModule:
    """As `trace`, with what forward does in training alone beside it: see modes.py.

    Where training cannot be traced, there is a warning, and the network does in it what it does in
    evaluation.
    """
    return Tracing(model, as_inputs(example_input), leaves).network(both_modes=True)


class Tracing:
    """One model on its way to a graph.

    Errors: QdeployError for a model that cannot be traced or does not take the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], leaves: Iterable[str]) -> None:
        check_leaves(model, leaves)
        self.model = keep_training_only(folded_copy(model))
        check_modules(self.model)
        check_input(copy.deepcopy(self.model), inputs)
        self.inputs, self.leaves, self.mode = inputs, leaves, model.training

    def network(self, *, both_modes: bool) -> fx.GraphModule:
        network, training = self.evaluation(), self.training(warns=both_modes)
        annotate_shapes(network, self.inputs)
        check_repeatable(network, self.inputs)
        if both_modes and training is not None:
            join_modes(network, training)
            annotate_shapes(network, self.inputs)
        norms_as_modules(network, self.model, training)
        dropouts_as_modules(network)
        return tidied(network).train(self.mode)

    def evaluation(self) -> fx.GraphModule:
        return traced(self.model.eval(), self.inputs, self.leaves)

    def training(self, *, warns: bool) -> fx.GraphModule | None:
        try:
            network = traced(self.model.train(), self.inputs, self.leaves)
            # A size is known because examples were run, which moves the statistics of norms.
            network.load_state_dict(self.model.state_dict(), strict=False)
            return network
        except QdeployError as error:
            if warns:
                warnings.warn(
                    f"the network does in training what it does in evaluation: {error}",
                    stacklevel=5,
                )
            return None


def traced(model: nn.Module, inputs: Sequence[Tensor], leaves: Iterable[str]) -> fx.GraphModule:
    """The graph of the model in the mode that it is in."""
    try:
        root, graph = graph_of(model, inputs, leaves)
    except Exception as error:
        line = user_line(traceback.extract_tb(error.__traceback__))
        raise QdeployError(
            f"torch.fx cannot trace {type(model).__name__}: {error}{line}. {WAYS_OUT}"
        ) from error
    # A pickled network is traced again where it is loaded, with torch.fx's own tracer.
    graph._tracer_cls = None
    network = fx.GraphModule(root, graph, type(model).__name__)
    without_writes(network, inputs)
    return network


def graph_of(
    model: nn.Module, inputs: Sequence[Tensor], leaves: Iterable[str]
) -> tuple[nn.Module, fx.Graph]:
    """Traced without sizes, or with those of example batches where forward computes with sizes.

    What forward writes down, such as a table for the last size that it met, ends with each attempt.
    """
    failed: Exception | None = None
    for tracer in tracers(model, inputs, leaves):
        root = copy.deepcopy(model)
        try:
            graph = tracer.trace(root)
        except Exception as error:
            failed = error
        else:
            detach_values(graph)
            return root, graph
    assert failed is not None
    raise failed


def tracers(
    model: nn.Module, inputs: Sequence[Tensor], leaves: Iterable[str]
) -> Iterator[NetworkTracer]:
    """From the one that knows no size to the one for which every size but the batch is a number."""
    yield NetworkTracer(leaves, len(inputs))
    for other in of_other_sizes(model, inputs):
        yield SizedTracer(leaves, inputs, other)
    yield SizedTracer(leaves, inputs, longer(inputs))


def tidied(network: fx.GraphModule) -> fx.GraphModule:
    """Without what nothing reads, and with names that a module can have."""
    for node in reversed(network.graph.nodes):
        if not node.users and (node.op == "get_attr" or asks_for_size(node)):
            network.graph.erase_node(node)
    for node in network.graph.nodes:
        if hasattr(nn.Module, node.name):  # quantizers are called after it
            node._rename(f"{node.name}_1")
    return fx.GraphModule(network, network.graph, type(network).__name__)


def keep_training_only(model: nn.Module) -> nn.Module:
    """Wraps each module of the user's that gives its input back in evaluation."""
    for name, module in list(model.named_modules()):
        if name and does_nothing_in_evaluation(module):
            model.set_submodule(name, TrainingOnly(module))
    return model


def does_nothing_in_evaluation(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn")
    if own or [*module.parameters(), *module.children()]:
        return False
    module, x = copy.deepcopy(module).eval(), torch.ones(2, 4, 4, 4)
    try:
        count = len(fx.Tracer().trace(module).nodes)
        # Perhaps one function stands between input and output, which is told the mode.
        return count <= 3 and module(x) is x and x._version == 0  # nor was it written to
    except Exception:
        return False


class Shapes(Interpreter, ShapeProp):
    """Writes the shape of each value to its node."""


def annotate_shapes(network: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Fills node.meta["tensor_meta"] by one run in evaluation mode."""
    was_training = network.training
    with torch.no_grad():
        Shapes(network.eval()).propagate(*inputs)
    network.train(was_training)
