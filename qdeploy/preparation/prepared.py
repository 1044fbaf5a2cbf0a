"""The training network that `prepare` gives: the user's own module, with quantized layers in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.norm import BATCH_NORMS
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.preparation.float_state import as_prepared_state
from qdeploy.preparation.forward import Forward
from qdeploy.preparation.modes import forwards
from qdeploy.preparation.settings import LayerSettings


class PreparedNetwork(nn.Module):
    """A network whose Conv and Linear layers search for integers.

    It is the network that `prepare` was given, of a class of its own that is a subclass of the user's:
    modules, parameters and attributes have the names that they had, and what is new stands beside
    them. Its forward is the graph that preparation made. In training mode it multiplies by relaxed
    weights, in evaluation mode by those that ship. `print(prepared)` shows every setting.

    settings          of each product, by its name; None stays float
    checked           whether `prepare` has compared it with the float network
    evaluation_graph  what forward is in evaluation
    training_graph    what it is in training
    feature_places    the nodes of the graph that give what modules of the user's gave: see features.py
    parts             the modules that the graphs run, by name
    """

    settings: dict[str, LayerSettings | None]
    checked: bool
    evaluation_graph: Forward
    training_graph: Forward
    feature_places: dict[str, str]
    parts: dict[str, nn.Module]

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        if isinstance(inputs, fx.Proxy):
            raise QdeployError(
                "a prepared network is a graph already, which nothing traces again; for what modules "
                'inside of it give, take qdeploy.features(prepared, ["layer1"])'
            )
        run = self.training_graph if self.training else self.evaluation_graph
        return run(self, *self.in_order(inputs, named))

    def in_order(
        self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """All that forward takes, by position."""
        if not named:
            return inputs
        names = list(self.arguments)
        given, wanted = names[: len(inputs)], names[len(inputs) :]
        if set(wanted) != named.keys():
            raise QdeployError(
                f"forward was prepared for {', '.join(names)} and is given "
                f"{', '.join([*given, *named])}; give it those, by name or in order. What else the "
                "float network takes keeps its default"
            )
        return *inputs, *(named[name] for name in wanted)

    @property
    def arguments(self) -> dict[str, torch.dtype]:
        """The tensors that forward takes: their names and types."""
        return self.evaluation_graph.arguments

    def train(self, mode: bool = True) -> Self:
        self.check_parts()
        return super().train(mode)

    def check_parts(self) -> None:
        """Errors: QdeployError for a module that has taken the place of one that was prepared."""
        for name, part in self.parts.items():
            now = self.get_submodule(name)
            if now is not part and getattr(now, "module", None) is not part:
                self._adopt(name, part, now)

    def _adopt(self, name: str, part: nn.Module, now: nn.Module) -> None:
        """Takes in a SyncBatchNorm of the very norm that stood there, and nothing else."""
        if type(part) not in BATCH_NORMS or not isinstance(now, nn.SyncBatchNorm):
            raise QdeployError(
                f"{name} was replaced after prepare, by {type(now).__name__}, which would stay in float or "
                "have no effect at all. Replace it in the float network and prepare that; what has trained "
                "goes along by name: new.load_state_dict(prepared.state_dict(), strict=False)"
            )
        self.parts[name] = now
        for _, layer in self.quantized_layers():
            if layer.norm is part:
                layer.__dict__["norm"] = now

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kind = fn(torch.empty(0)).dtype
        if kind.itemsize < torch.float32.itemsize:
            raise QdeployError(
                f"a prepared network trains with float32 parameters, not {kind}: steps and ranges have no "
                "use of fewer bits. Use torch.autocast (a trainer's bf16-mixed or 16-mixed)"
            )
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        """As it is for any module; the float network's state is taken as well."""
        as_prepared_state(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Moves every schedule to `epoch` (from 0) of `epochs`; call it before each epoch."""
        for quantizer in self._weight_quantizers():
            quantizer.set_progress(epoch, epochs)

    @property
    def progress(self) -> dict[str, float]:
        """Where the schedules stand, {name: value}; of layers that differ, the lowest value."""
        values: dict[str, float] = {}
        for quantizer in self._weight_quantizers():
            for name, value in quantizer.progress().items():
                values[name] = min(value, values.get(name, value))
        return values

    @property
    def quant_delay(self) -> int:
        """Training steps until the last activation is quantized."""
        quantizers = (m for m in self.modules() if isinstance(m, ActivationQuantizer))
        return max((quantizer.quant_delay for quantizer in quantizers), default=0)

    @property
    def searching(self) -> bool:
        """True while some layer trains with weights that are not yet those that ship."""
        return any(quantizer.searching for quantizer in self._weight_quantizers())

    def quantized_layers(self) -> Iterator[tuple[str, QuantizedLayer]]:
        """Name and module of each quantized layer."""
        for name, module in self.named_modules():
            if isinstance(module, QuantizedLayer):
                yield name, module

    def _weight_quantizers(self) -> Iterator[WeightQuantizer]:
        return (layer.quantizer for _, layer in self.quantized_layers())

    def extra_repr(self) -> str:
        lines = [f"{name}: {chosen or 'float'}" for name, chosen in self.settings.items()]
        return "\n".join(lines)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As nn.Module is copied, also where the user's class does it in another way."""
        memo[id(self)] = copied = object.__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its class is made anew where it is loaded; the user's class must be there."""
        kinds = type(self).__mro__
        return without_init, (kinds[kinds.index(PreparedNetwork) + 1],), self.__dict__


@cache
def class_of_prepared(kind: Any) -> type[PreparedNetwork]:
    """PreparedNetwork as a subclass of the user's class, the same for all networks of that class."""
    name = f"Prepared{kind.__name__}"
    return type(name, (PreparedNetwork, kind), {"__module__": kind.__module__})


def without_init(kind: Any) -> PreparedNetwork:
    return object.__new__(class_of_prepared(kind))


def prepared_network(
    model: nn.Module, network: fx.GraphModule, settings: Mapping[str, LayerSettings | None]
) -> PreparedNetwork:
    """The model, in place, with the modules and parameters of a graph that was made of it.

    Errors: QdeployError for a name that a prepared network has for something of its own.
    """
    check_names(model)
    graft(network, model)
    if isinstance(model, fx.GraphModule):  # its class is its forward, and no base of another
        model = plain(model)
    prepared = without_init(type(model))
    prepared.__dict__.update(vars(model))
    prepared.settings = dict(settings)
    prepared.checked = False
    prepared.feature_places = {}
    prepared.evaluation_graph, prepared.training_graph = forwards(network)
    prepared.parts = parts_of(prepared)
    return prepared


def plain(model: nn.Module) -> nn.Module:
    """A module of no class of its own that holds what the model holds."""
    made = nn.Module().train(model.training)
    for ours, theirs in zip(members(made), members(model), strict=True):
        ours.update(theirs)
    return made


def check_names(model: nn.Module) -> None:
    own = vars(PreparedNetwork).keys() | PreparedNetwork.__annotations__.keys()
    inherited = vars(nn.Module).keys()
    clashes = [
        name for name in own - inherited if not name.startswith("__") and hasattr(model, name)
    ]
    if clashes:
        raise QdeployError(
            f"{type(model).__name__} has {', '.join(sorted(clashes))}, which a prepared network has for "
            "something of its own; rename it, or prepare the part of the network without it"
        )


def parts_of(prepared: PreparedNetwork) -> dict[str, nn.Module]:
    """The modules that its graphs call, and the norms that layers of them run."""
    graphs = prepared.evaluation_graph.graph, prepared.training_graph.graph
    calls = [str(node.target) for graph in graphs for node in graph.find_nodes(op="call_module")]
    norms = {layer.norm for _, layer in prepared.quantized_layers()}
    joined = [name for name, module in prepared.named_modules() if module in norms]
    return {name: prepared.get_submodule(name) for name in (*calls, *joined)}


def graft(network: nn.Module, model: nn.Module) -> None:
    """Puts the modules, parameters and buffers of a graph into a model, by their names, in place.

    What the model holds under several names is replaced under all of them.
    """
    replaced: dict[int, tuple[Any, Any]] = {}  # with the old ones, so that no id stands for two
    replace_by_name(network, model, replaced)
    for module in list(model.modules()):
        for parts in members(module):
            for name, old in parts.items():
                parts[name] = replaced.get(id(old), (old, old))[1]


def replace_by_name(
    network: nn.Module, model: nn.Module, replaced: dict[int, tuple[Any, Any]]
) -> None:
    for name, part in network._modules.items():
        old = model._modules.get(name)
        if type(part) is nn.Module and old is not None:  # torch.fx's own, which only holds others
            replace_by_name(part, old, replaced)
        elif old is not part:
            model._modules[name], replaced[id(old)] = part, (old, part)
    for new, own in list(zip(members(network), members(model), strict=True))[1:]:
        for name, tensor in new.items():
            old, own[name] = own.get(name), tensor
            replaced[id(old)] = old, tensor
    replaced.pop(id(None), None)


def members(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Its modules, parameters and buffers by name."""
    return module._modules, module._parameters, module._buffers


def graph_module(prepared: PreparedNetwork) -> fx.GraphModule:
    """The graph of evaluation, with the modules of the network that runs it."""
    prepared.check_parts()
    return fx.GraphModule(
        prepared, copy.deepcopy(prepared.evaluation_graph.graph), type(prepared).__name__
    )


def is_searching(network: nn.Module) -> bool:
    """Whether the integers of a prepared network, alone or inside of another, are still searched for."""
    return any(isinstance(m, PreparedNetwork) and m.searching for m in network.modules())


def committed_latents(network: nn.Module) -> list[nn.Parameter]:
    """The latents of finished searches, in a prepared network alone or inside of another."""
    quantizers = (m for m in network.modules() if isinstance(m, WeightQuantizer))
    return [quantizer.latent for quantizer in quantizers if quantizer.committed]
