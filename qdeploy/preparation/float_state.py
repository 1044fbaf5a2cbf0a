"""The state of a float network, as what a network prepared of it would have."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from qdeploy.layers.host import on_host
from qdeploy.layers.learned_activation import MEASURING
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.range_norm import RangeBatchNorm
from qdeploy.preparation.opening import OPENED

State = dict[str, Any]
# What a float network has in another form.
STARTED = (QuantizedLayer, *OPENED, RangeBatchNorm)


def take_state_by_part(prepared: nn.Module) -> None:
    """Lets parts of a prepared network load the state of theirs, `prepared.backbone.load_state_dict(...)`."""
    for part in prepared.modules():
        if part is not prepared and any(isinstance(m, STARTED) for m in part.modules()):
            part.register_load_state_dict_pre_hook(as_state_of_part)


def as_state_of_part(part: nn.Module, state: State, prefix: str, *_: Any) -> None:
    """`as_prepared_state` where the part is what loads, not the network around it."""
    if not prefix:
        as_prepared_state(part, state, prefix)


def as_prepared_state(prepared: nn.Module, state: State, prefix: str) -> None:
    """Turns the weights of a float network in `state` into latent parameters, in place.

    prepared   the network, or a part of it

    A weight is the float network's where nothing beside it tells that it was prepared. What only a
    prepared network has stays as it is in `prepared`, but for steps and scales of weights, which start anew.
    """
    places = {f"{prefix}{name}." if name else prefix: m for name, m in prepared.named_modules()}
    for place, module in places.items():
        if isinstance(module, OPENED):
            module.open_state(state, place)
    tensors = nn.Module.state_dict(prepared, keep_vars=True)  # the user's class may rename them
    own = {prefix + key: value for key, value in tensors.items()}
    known = {id(value): key for key, value in own.items() if key in state}
    for key, value in own.items():  # the same tensor under another name
        if id(value) in known:
            state.setdefault(key, state[known[id(value)]])
    layers = {place: m for place, m in places.items() if isinstance(m, QuantizedLayer)}
    given = {place: layer for place, layer in layers.items() if is_float(state, place)}
    if not given:
        return
    for place, layer in given.items():
        restart(layer, state, place)
    for place, module in places.items():
        if isinstance(module, RangeBatchNorm):
            module.take_plain_state(state, place)
    if has_trained(prepared):
        warnings.warn(
            "float weights are loaded into a network that has trained: the search for weights starts anew "
            "from them, and ranges of activations stay until training or qdeploy.calibrate moves them",
            stacklevel=5,
        )
    for key, value in own.items():
        state.setdefault(key, value.detach())


def has_trained(prepared: nn.Module) -> bool:
    """Whether some activation quantizer has seen data."""
    ranges = (m for m in prepared.modules() if isinstance(m, MEASURING))
    return any(on_host(quantizer.batches) for quantizer in ranges)


def is_float(state: State, place: str) -> bool:
    """Whether the weight at this place is that of a float layer."""
    return f"{place}weight" in state and f"{place}steps" not in state


def restart(layer: QuantizedLayer, state: State, place: str) -> None:
    """Puts what the search starts from in the place of a float weight."""
    weight: Tensor = layer.float_product.with_output_channels_first(state[f"{place}weight"])
    made = layer.quantizer.remake(weight)
    if layer.quantizer.origin is not None:
        layer.quantizer.origin = weight.detach().to(layer.quantizer.origin)
    started = made.state_dict()
    state[f"{place}weight"] = started.pop("latent")
    state.update({f"{place}quantizer.{name}": value for name, value in started.items()})
