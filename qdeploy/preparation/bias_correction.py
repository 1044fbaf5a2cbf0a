"""Bias correction: each layer's mean output becomes again what it was in float.

Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.2, measured on calibration batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.folding import deviation
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.uniform import UniformWeight

Means = dict[str, list[Tensor]]  # by layer: a mean output [out] for each time that it was called


def float_means(prepared: nn.Module, batches: Sequence[Tensor]) -> Means:
    """What each layer that has a bias gives on average with the weights and activations in float.

    Errors: QdeployError for a layer whose method trains something other than the weight.
    """
    network = copy.deepcopy(prepared).eval()
    for name, module in list(network.named_modules()):
        if isinstance(module, ActivationQuantizer):
            network.set_submodule(name, nn.Identity())
    for name, layer in quantized_layers(network):
        if not isinstance(layer.quantizer, UniformWeight):
            raise QdeployError(
                "correct_bias compares with the float weight, and "
                f"{name.removeprefix('network.')} trains another one "
                f"({type(layer.quantizer).__name__}); leave correct_bias out, or take method simqat"
            )
        network.set_submodule(f"{name}.quantizer", FloatWeight(layer.quantizer))
    means: Means = {}

    def note(name: str, y: Tensor) -> None:
        means.setdefault(name, []).append(channel_means(y))

    with each_output(network, note):
        for batch in batches:
            network(batch)
    return means


class FloatWeight(nn.Module):
    """The weight that a quantizer rounds, as it is."""

    def __init__(self, quantizer: UniformWeight) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, gain: Tensor | None = None) -> Tensor:
        return self.quantizer.scaled_latent(gain)


def restore_means(prepared: nn.Module, batches: Sequence[Tensor], wanted: Means) -> None:
    """Moves, in evaluation mode, the bias, or the BatchNorm's, of each layer by what its mean output is off.

    Within a batch every layer is corrected before the next one runs, as a BatchNorm in training
    does; what is kept is the mean over the batches. A layer with neither hands its error on to
    the next.
    """
    expected = {name: iter(means) for name, means in wanted.items()}
    errors: Means = {name: [] for name in wanted}

    def correct(name: str, y: Tensor) -> Tensor:
        error = next(expected[name]) - channel_means(y)
        errors[name].append(error)
        return y + error

    with each_output(prepared, correct):
        for batch in batches:
            prepared(batch)
    for name, layer in quantized_layers(prepared):
        if name in errors:
            move_output(layer, torch.stack(errors[name]).mean(0))


def move_output(layer: QuantizedLayer, by: Tensor) -> None:
    """Adds by [out] to what the layer gives."""
    if layer.norm is None:
        assert layer.bias is not None
        layer.bias.add_(by)
    elif layer.norm.bias is not None:
        layer.norm.bias.add_(by)
    else:
        assert layer.norm.running_mean is not None
        layer.norm.running_mean.sub_(by * deviation(layer.norm))


@contextmanager
def each_output(network: nn.Module, do: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Calls do(name, output [..., C]) when a layer with a bias or a norm has run.

    The layer then gives what `do` returns, unless that is None.
    """

    def hook_of(name: str, layer: QuantizedLayer) -> Callable[..., Tensor | None]:
        axis = -1 if layer.kind == "Linear" else 1

        def hook(module: nn.Module, inputs: object, y: Tensor) -> Tensor | None:
            changed = do(name, y.movedim(axis, -1))
            return None if changed is None else changed.movedim(-1, axis)

        return hook

    hooks = [
        layer.register_forward_hook(hook_of(name, layer))
        for name, layer in quantized_layers(network)
        if layer.bias is not None or layer.norm is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def quantized_layers(network: nn.Module) -> list[tuple[str, QuantizedLayer]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, QuantizedLayer)]


def channel_means(y: Tensor) -> Tensor:
    """Of y [..., C] over the batch of all processes, [C]."""
    return processes.mean(y.flatten(0, -2).mean(0))
