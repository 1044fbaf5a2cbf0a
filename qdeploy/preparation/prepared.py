"""The training network that `prepare` gives."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Self

from torch import Tensor, fx, nn

from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.preparation.modes import split
from qdeploy.preparation.settings import LayerSettings


class PreparedNetwork(nn.Module):
    """A network whose Conv and Linear layers search for integers.

    In training mode it multiplies by relaxed weights, in evaluation mode by those that ship.
    `print(prepared)` shows every setting.

    checked   whether `prepare` has compared it with the float network
    """

    checked = False

    def __init__(
        self, network: fx.GraphModule, settings: Mapping[str, LayerSettings | None]
    ) -> None:
        super().__init__()
        self.in_training = split(network)
        self.network = network
        self.settings = dict(settings)
        self.always_in_evaluation = [name for name, m in network.named_modules() if not m.training]

    def train(self, mode: bool = True) -> Self:
        """As the user's own train() may have it, modules that were in evaluation stay so in training."""
        super().train(mode)
        for name in self.always_in_evaluation:
            self.network.get_submodule(name).training = False
        return self

    def forward(self, *inputs: Tensor) -> Any:
        if self.training and self.in_training is not None:
            return self.in_training(self.network, *inputs)
        return self.network(*inputs)

    def __getstate__(self) -> dict[str, Any]:
        """With the shapes that the nodes of the graph know: torch.fx pickles a graph as code alone."""
        shapes = [node.meta.get("tensor_meta") for node in self.network.graph.nodes]
        # As bytes: torch.save's own protocol cannot pickle a memory format.
        return self.__dict__ | {"shapes": pickle.dumps(shapes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shapes = pickle.loads(state.pop("shapes"))
        super().__setstate__(state)
        for node, shape in zip(self.network.graph.nodes, shapes, strict=True):
            node.meta["tensor_meta"] = shape

    @property
    def arguments(self) -> int:
        """How many tensors forward takes."""
        return sum(node.op == "placeholder" for node in self.network.graph.nodes)

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
        for name, module in self.network.named_modules():
            if isinstance(module, QuantizedLayer):
                yield name, module

    def _weight_quantizers(self) -> Iterator[WeightQuantizer]:
        return (layer.quantizer for _, layer in self.quantized_layers())

    def extra_repr(self) -> str:
        lines = [f"{name}: {chosen or 'float'}" for name, chosen in self.settings.items()]
        return "\n".join(lines)


def is_searching(network: nn.Module) -> bool:
    """Whether the integers of a prepared network, alone or inside of another, are still searched for."""
    return any(isinstance(m, PreparedNetwork) and m.searching for m in network.modules())


def committed_latents(network: nn.Module) -> list[nn.Parameter]:
    """The latents of finished searches, in a prepared network alone or inside of another."""
    quantizers = (m for m in network.modules() if isinstance(m, WeightQuantizer))
    return [quantizer.latent for quantizer in quantizers if quantizer.committed]
