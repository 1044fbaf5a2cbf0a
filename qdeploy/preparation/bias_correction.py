"""Bias correction: each layer's output has again the mean, and a norm's the deviation, of float.

Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.2, measured on calibration batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.norm import batch_moments
from qdeploy.layers.norm import deviation as deviation_of
from qdeploy.layers.quantized import QuantizedLayer, quantized_layers
from qdeploy.layers.weight import WeightQuantizer

# By layer: two values [out] for each time that it was called.
Moments = dict[str, list[tuple[Tensor, Tensor]]]


def float_weights(prepared: nn.Module) -> dict[str, FloatWeight]:
    """The float weight of each quantized layer, by the layer's name.

    Errors: QdeployError for a layer whose method trains something other than the weight.
    """
    found = {}
    for name, layer in quantized_layers(prepared):
        if layer.quantizer.float_weight() is None:
            raise QdeployError(
                "correct_bias compares with the float weight, and "
                f"{name} trains another one "
                f"({type(layer.quantizer).__name__}); set calibrate.correct_bias to false, or take "
                "method simqat"
            )
        found[name] = FloatWeight(layer.quantizer)
    return found


def float_moments(prepared: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Moments:
    """Mean and deviation of what each layer that has a bias gives in float.

    Errors: QdeployError for a layer whose method trains something other than the weight.
    """
    network = copy.deepcopy(prepared).eval()
    for name, module in list(network.named_modules()):
        if isinstance(module, ActivationQuantizer):
            network.set_submodule(name, nn.Identity())
    for name, weight in float_weights(network).items():
        network.set_submodule(f"{name}.quantizer", weight)
    moments: Moments = {}

    def note(name: str, y: Tensor) -> None:
        moments.setdefault(name, []).append(moments_of(y))

    with each_output(network, note):
        for inputs in batches:
            network(*inputs)
    return moments


class FloatWeight(nn.Module):
    """The weight that a quantizer rounds, as it is."""

    def __init__(self, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.quantizer: WeightQuantizer = quantizer

    def forward(self, gain: Tensor | None = None) -> Tensor | None:
        return self.quantizer.float_weight(gain)


def restore_moments(
    prepared: nn.Module, batches: Sequence[tuple[Tensor, ...]], wanted: Moments
) -> None:
    """Moves, in evaluation mode, the bias of each layer by what its mean output is off.

    A BatchNorm's gain is multiplied by what the deviation is off as well: rounded weights, and
    clipped ones above all, shrink or stretch what a layer gives. Within a batch every layer is
    corrected before the next one runs, as a BatchNorm in training does; what is kept is the mean
    over the batches. A layer with neither bias nor norm hands its error on to the next.
    """
    layers = dict(quantized_layers(prepared))
    expected = {name: iter(moments) for name, moments in wanted.items()}
    corrections: Moments = {name: [] for name in wanted}

    def correct(name: str, y: Tensor) -> Tensor:
        (mean, deviation), (mean_now, deviation_now) = next(expected[name]), moments_of(y)
        factor, norm = torch.ones_like(mean), layers[name].norm
        if norm is not None and norm.affine:
            factor = torch.where(deviation_now > 0, deviation / deviation_now, factor)
        shift = mean - factor * mean_now
        corrections[name].append((factor, shift))
        return factor * y + shift

    with each_output(prepared, correct), processes.apart():
        for inputs in batches:
            prepared(*inputs)
    together: dict[Any, list[str]] = {}  # what several layers share changes once
    for name in corrections:
        together.setdefault(layers[name].norm or layers[name].bias, []).append(name)
    for names in together.values():
        changes = torch.stack([torch.stack(one) for name in names for one in corrections[name]])
        count = processes.total(changes.new_tensor(float(len(changes))))
        factor, shift = processes.total(changes.sum(0)) / count
        change_output(layers[names[0]], factor, shift)


def change_output(layer: QuantizedLayer, factor: Tensor, shift: Tensor) -> None:
    """Makes the layer give factor y + shift, [out] each; the factor is 1 but for a gain."""
    if layer.norm is None:
        assert layer.bias is not None
        layer.bias.add_(shift)
    elif layer.norm.affine:
        layer.norm.weight.mul_(factor)
        layer.norm.bias.mul_(factor).add_(shift)
    else:
        assert layer.norm.running_mean is not None
        layer.norm.running_mean.sub_(shift * deviation_of(layer.norm))


@contextmanager
def each_output(network: nn.Module, do: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Calls do(name, output [..., C]) when a layer with a bias or a norm has run.

    The layer then gives what `do` returns, unless that is None.
    """

    def hook(layer: QuantizedLayer, _: object, y: Tensor, name: str) -> Tensor | None:
        axis = layer.product.shipped.channel_axis
        changed = do(name, y.movedim(axis, -1))
        return None if changed is None else changed.movedim(-1, axis)

    with ExitStack() as hooks:
        for name, layer in quantized_layers(network):
            if layer.bias is not None or layer.norm is not None:
                hooks.enter_context(layer.register_forward_hook(partial(hook, name=name)))
        yield


def moments_of(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of y [..., C], [C] each."""
    mean, variance = batch_moments(y.flatten(0, -2))
    return mean, variance.sqrt()
