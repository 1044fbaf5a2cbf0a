"""The training network that `prepare` gives: the user's own module, with quantized layers in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from typing_extensions import Self

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.norm import BATCH_NORMS
from qdeploy.layers.quantized import QuantizedLayer, quantized_layers
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.preparation.float_state import as_prepared_state
from qdeploy.preparation.forward import Forward, OfNoPart
from qdeploy.preparation.settings import LayerSettings


@dataclass
class Plan:
    """What preparation made of a network.

    evaluation, training   what forward is in each mode
    settings   of each product, by its name; None stays float
    norms      the name of the norm that a layer runs, by the layer's
    parts      the modules that the graphs call and the norms that layers run, by name
    chains     the names of what each Sequential and each list of modules holds, by its own
    places     the nodes of the graph that give what modules of the user's gave: see features.py
    checked    whether `prepare` has compared it with the float network
    """

    evaluation: Forward
    training: Forward
    settings: dict[str, LayerSettings | None] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    parts: dict[str, nn.Module] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    checked: bool = False


class PreparedNetwork(nn.Module):
    """A network whose Conv and Linear layers search for integers.

    It is the network that `prepare` was given, of a class of its own that is a subclass of the user's:
    modules, parameters and attributes have the names that they had, and what is new stands beside
    them. Its forward is the graph that preparation made. In training mode it multiplies by relaxed
    weights, in evaluation mode by those that ship. `print(prepared)` shows every setting.
    """

    plan: Plan

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Only of a slice, for which a Sequential makes one more of its class: it has no graph."""
        super().__init__(*arguments, **options)
        self.__dict__["plan"] = Plan(OfNoPart(), OfNoPart())

    @property
    def settings(self) -> dict[str, LayerSettings | None]:
        """Those of each product, by its name; None stays float."""
        return self.plan.settings

    @property
    def checked(self) -> bool:
        """Whether `prepare` has compared it with the float network."""
        return self.plan.checked

    def __init_subclass__(cls) -> None:
        """Tells the user's class nothing of this one: it may keep a register of its networks."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        check_caller(inputs)
        run = self.plan.training if self.training else self.plan.evaluation
        if getattr(self, "_is_replica", False):  # of nn.DataParallel, which knows children alone
            self.connect()
        return run(self, *run.in_order(inputs, named))

    def train(self, mode: bool = True) -> Self:
        self.check_parts()
        return super().train(mode)

    def check_parts(self) -> None:
        """Errors: QdeployError for a module that was replaced, removed or added since it was prepared.

        A SyncBatchNorm may take the place of the very norm that stood there: from then on layers run it.
        """
        for name, part in self.plan.parts.items():
            now = self._part(name)
            if now is part or part is wrapped_by(now):
                continue
            if type(part) not in BATCH_NORMS or not isinstance(now, nn.SyncBatchNorm):
                raise changed(f"{name} was replaced after prepare, by {type(now).__name__}")
            self.plan.parts[name] = now
            self.connect()
        for name, names in self.plan.chains.items():
            found = [child for child, _ in self._part(name).named_children()]
            if found != names:
                which, had, has = name or type(self).__name__, ", ".join(names), ", ".join(found)
                raise changed(f"{which} was prepared with {had} and has {has}")

    def _part(self, name: str) -> nn.Module:
        try:
            return self.get_submodule(name)
        except AttributeError:
            raise changed(
                f"{name} was removed after prepare, or what held it was replaced"
            ) from None

    def connect(self) -> None:
        """Tells layers of the norm that they run, and quantizers of their layer: none is a child."""
        for name, layer in self.quantized_layers():
            layer.quantizer.__dict__["layer"] = layer
            if name in self.plan.norms:
                layer.__dict__["norm"] = self.get_submodule(self.plan.norms[name])

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
        return iter(quantized_layers(self))

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


def check_caller(inputs: Any) -> None:
    """Errors: QdeployError inside of torch.fx's tracing and of transforms of torch.func."""
    if torch.compiler.is_compiling():
        return
    if isinstance(inputs, fx.Proxy) or any(isinstance(x, fx.Proxy) for x in inputs):
        raise QdeployError(
            "a prepared network is a graph already, which nothing traces again; for what modules "
            'inside of it give, take qdeploy.features(prepared, ["layer1"])'
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise QdeployError(
            "the transforms of torch.func (grad, vmap, jacrev) cannot pass through what rounds. Take "
            "torch.autograd.grad of torch.func.functional_call(prepared, parameters, inputs), and a loop "
            "over examples or networks in place of vmap"
        )


def wrapped_by(module: nn.Module) -> nn.Module | None:
    """What a wrapper of torch's runs: of data parallelism, FSDP, an average, torch.compile."""
    if not type(module).__module__.startswith("torch."):
        return None
    compiled: nn.Module | None = module._modules.get("_orig_mod")
    return compiled or getattr(module, "module", None)


def changed(what: str) -> QdeployError:
    return QdeployError(
        f"{what}, which would stay in float or have no effect at all. Change the float network and prepare "
        "that; what has trained goes along by name: new.load_state_dict(prepared.state_dict(), strict=False)"
    )


@cache
def class_of_prepared(kind: Any) -> type[PreparedNetwork]:
    """PreparedNetwork as a subclass of the user's class, the same for all networks of that class."""
    name = f"Prepared{kind.__name__}"
    return type(name, (PreparedNetwork, kind), {"__module__": kind.__module__})


def without_init(kind: Any) -> PreparedNetwork:
    return object.__new__(class_of_prepared(kind))


def graph_module(prepared: PreparedNetwork) -> fx.GraphModule:
    """The graph of evaluation, with the modules of the network that runs it, without wrappers."""
    prepared.check_parts()
    graph = copy.deepcopy(prepared.plan.evaluation.graph)
    network = fx.GraphModule(prepared, graph, type(prepared).__name__)
    for call in network.graph.find_nodes(op="call_module"):
        part = prepared.plan.parts[call.target]
        if network.get_submodule(call.target) is not part:
            network.set_submodule(call.target, part)
    return network


def is_searching(network: nn.Module) -> bool:
    """Whether the integers of a prepared network, alone or inside of another, are still searched for."""
    return any(isinstance(m, PreparedNetwork) and m.searching for m in network.modules())


def committed_latents(network: nn.Module) -> list[nn.Parameter]:
    """The latents of finished searches, in a prepared network alone or inside of another."""
    quantizers = (m for m in network.modules() if isinstance(m, WeightQuantizer))
    return [quantizer.latent for quantizer in quantizers if quantizer.committed]
