"""Weights that are computed from others, folded: weight_norm and spectral_norm, old and new.

What a layer multiplies by is then a parameter of its own, which can be quantized and trains on.
"""

from __future__ import annotations

import copy
import warnings

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def folded_copy(model: nn.Module) -> nn.Module:
    """A copy without parametrizations: each weight is the value that evaluation computes.

    A warning says which, since what they bound or normalise is from then on free.
    """
    model = copy.deepcopy(model, computed(model))
    training = {module: module.training for module in model.modules()}
    folded = [label for name, m in list(model.eval().named_modules()) for label in fold(name, m)]
    for module, mode in training.items():
        module.training = mode
    if folded:
        warnings.warn(
            f"{', '.join(folded)}: prepare folds what a weight is computed by into the weight, and "
            "training goes on with that",
            stacklevel=3,
        )
    return model


def computed(model: nn.Module) -> dict[int, Tensor]:
    """Weights that a hook has written down: deepcopy, which takes leaves alone, finds them copied."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(x): x.detach().clone() for x in values if isinstance(x, Tensor) and not x.is_leaf}


def fold(name: str, module: nn.Module) -> list[str]:
    """Folds what is registered on this module itself; what that was, for the warning."""
    folded = []
    if parametrize.is_parametrized(module):
        module.__class__ = copy_of_class(type(module))
        for tensor, chain in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            kinds = ", ".join(type(step).__name__.lstrip("_") for step in chain)
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
            folded.append(f"{name}.{tensor} ({kinds})".lstrip("."))
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm | SpectralNorm):
            remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
            remove(module, hook.name)
            folded.append(f"{name}.{hook.name} ({type(hook).__name__})".lstrip("."))
    return folded


def copy_of_class(kind: type) -> type:
    """PyTorch makes a class for every parametrized module, which copies of the module share.

    Removing a parametrization takes the weight from the class, and so from the user's module too.
    """
    return type(kind.__name__, kind.__bases__, dict(vars(kind)))
