"""From a recipe to its parts: data, float network, prepared network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.data import Data
from qdeploy.errors import QdeployError
from qdeploy.layers.modes import evaluation_mode
from qdeploy.layers.transparent import transparent
from qdeploy.network_loading import load_network
from qdeploy.preparation.bias_correction import float_weights
from qdeploy.preparation.prepare import prepare
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import Recipe


def float_network_of(recipe: Recipe, data: Data, copy: Path | None = None) -> nn.Module:
    """The recipe's network, freshly initialised from the recipe's seed.

    copy    a run's copy of the network's file, see load_network

    Errors: QdeployError if it does not take the data's images or does not give one logit a class.
    """
    torch.manual_seed(recipe.train.seed)
    network = load_network(recipe.model.network, recipe.model.options, copy)
    check_fits(network, data, recipe.model.network)
    return network


def with_regime(data: Data, recipe: Recipe, *networks: nn.Module) -> Data:
    """The data under the recipe's regime.

    networks   the float one, and the prepared one, which decides by sizes as it did when it was traced

    Errors: QdeployError if one of them does not take the images of a phase, or the processes of the
    run cannot share out its batches.
    """
    train = data.train.under(recipe.data)
    for size in {section.image_size for section in recipe.data.phases()}:
        if size is not None:
            resized = replace(data, input_shape=(data.input_shape[0], size, size))
            for network in networks:
                check_fits(network, resized, recipe.model.network)
    return replace(data, train=train)


def check_fits(network: nn.Module, data: Data, name: str) -> None:
    """Runs two blank images through the network."""
    shape, classes = data.input_shape, len(data.classes)
    try:
        with evaluation_mode(network), transparent(network), torch.no_grad():
            logits = network(example_input(data))
    except Exception as error:
        raise QdeployError(
            f"network {name!r} cannot take images of shape {list(shape)} of {data.title}: "
            f"{type(error).__name__}: {error}; "
            "set model.options to this image size and number of channels"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise QdeployError(
            f"network {name!r} gives {given} for 2 images; {data.title} has {classes} classes, so "
            f"it must give [2, {classes}]: set model.options, such as num_classes = {classes}"
        )


def example_input(data: Data) -> Tensor:
    """Two blank images, [2, C, H, W]."""
    return torch.zeros(2, *data.input_shape)


def trainable(recipe: Recipe, float_network: nn.Module, data: Data) -> nn.Module:
    """What the recipe trains: the network prepared for its method, or the float network itself."""
    quantize = recipe.quantize
    if quantize.method == "float":
        return float_network
    check_options(quantize.options)
    torch.manual_seed(recipe.train.seed)
    network = prepare(
        float_network,
        example_input(data),
        quantize.method,
        quantize.weight_bits,
        quantize.act_bits,
        quantize.layers,
        first_last_float=quantize.first_last_float,
        equalize=quantize.equalize,
        reduce_range=quantize.reduce_range,
        leaves=quantize.leaves,
        check=quantize.check,
        **quantize.options,
    )
    if recipe.train.epochs == 0 and recipe.calibrate.correct_bias:
        float_weights(network)  # finds what has none before hours in float
    return network


def check_options(options: Mapping[str, Any]) -> None:
    """Errors: QdeployError for a key of [quantize] among the method's own options."""
    misplaced = sorted(set(options) & set(inspect.signature(prepare).parameters))
    if misplaced:
        raise QdeployError(
            f"quantize.options has {', '.join(misplaced)}, which no method takes; keys such as "
            "weight_bits, act_bits and layers stand in [quantize] itself"
        )


def settings_text(network: nn.Module) -> str:
    """Every setting of the quantization, a line for each layer."""
    return network.extra_repr() if isinstance(network, PreparedNetwork) else "float"
