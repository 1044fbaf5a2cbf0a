"""Whether the weights of a prepared network are there to be converted: whole, and not computed by a hook."""

from __future__ import annotations

from torch import nn

from qdeploy.errors import QdeployError
from qdeploy.layers.quantized import QuantizedLayer, quantized_layers


def check_whole(network: nn.Module) -> None:
    """Errors: QdeployError for a network of which each process has a part, or with weights of hooks."""
    layers = quantized_layers(network)
    if is_flattened(network) or any(hasattr(layer.weight, "full_tensor") for _, layer in layers):
        raise QdeployError(
            "FSDP has spread this network over processes. Gather its state in all of them, "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
            "torch.distributed.checkpoint.state_dict, load that into a network prepared in the same way, "
            "and convert or export this one"
        )
    if hooked := [name for name, layer in layers if is_hooked(layer)]:
        raise QdeployError(
            f"a hook computes the weight of {', '.join(hooked)}. Make it permanent before convert or export: "
            "torch.nn.utils.prune.remove(layer, 'weight'), torch.nn.utils.remove_weight_norm(layer)"
        )


def is_flattened(network: nn.Module) -> bool:
    """Whether FSDP 1 keeps the weights of layers in one long parameter, of which they are views at most."""
    layers = [layer for _, layer in quantized_layers(network) if not is_computed(layer)]
    weights = [layer._parameters.get("weight") for layer in layers]
    return any(weight is None or weight.ndim < 2 for weight in weights)


def is_computed(layer: QuantizedLayer) -> bool:
    """Whether torch computes its weight anew from others: a parametrization, torch.nn.utils.prune."""
    return hasattr(layer, "parametrizations") or is_hooked(layer)


def is_hooked(layer: QuantizedLayer) -> bool:
    """Whether a hook does so, which leaves in its place a tensor that cannot be copied."""
    return any(name.startswith("weight_") for name, _ in layer.named_parameters(recurse=False))
