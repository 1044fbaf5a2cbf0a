"""Which layer is quantized by which method, to how many bits."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from qdeploy import methods
from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.layers.product import product_of
from qdeploy.methods import Method, Options
from qdeploy.recipe import validated

FLOAT = "float"
OVERRIDE_KEYS = ("method", "weight_bits", "act_bits", "options")
Override = Mapping[str, Any] | str


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is quantized. act_bits: of the tensor it reads; None is float."""

    method_name: str
    method: Method
    weight_bits: int
    act_bits: int | None
    options: Options

    @property
    def of_weight(self) -> tuple[str, int, Options]:
        """What of the settings the weight is trained by."""
        return self.method_name, self.weight_bits, self.options

    def __str__(self) -> str:
        acts = FLOAT if self.act_bits is None else self.act_bits
        return f"{self.method_name} w{self.weight_bits}a{acts} ({self.options})"


def layer_settings(
    method: str, weight_bits: int, act_bits: int | None, options: Mapping[str, Any]
) -> LayerSettings:
    """Checked settings; errors: unknown method, bits or options that it has not, or not together."""
    found = methods.find(method)
    _check_bits(method, "weight_bits", weight_bits, found.weight_bits)
    if act_bits is not None:
        _check_bits(method, "act_bits", act_bits, found.act_bits, " or 'float'")
    checked = validated(found.options, options, f"options of method {method!r}")
    checked.check(act_bits)
    return LayerSettings(method, found, weight_bits, act_bits, checked)


def check_names(method: str, options: Iterable[str], settings: Iterable[str]) -> None:
    """Errors: QdeployError for an option that the method has not, but prepare under a similar name."""
    own = methods.find(method).options.model_fields
    for name in set(options) - set(own):
        hint = did_you_mean(name, [*own, *settings])
        if hint and hint == did_you_mean(name, settings):
            raise QdeployError(f"neither prepare nor method {method!r} has {name}.{hint}")


def _check_bits(method: str, name: str, bits: int, allowed: Sequence[int], more: str = "") -> None:
    if type(bits) is not int or bits not in allowed:
        choices = ", ".join(map(str, allowed))
        raise QdeployError(f"method {method!r} has no {name} = {bits!r}; it can do {choices}{more}")


def settings_by_layer(
    layers: Mapping[str, nn.Module],
    default: LayerSettings,
    overrides: Mapping[str, Override],
    first_last_float: bool,
) -> dict[str, LayerSettings | None]:
    """Settings of each layer by name, in the order the network runs them; None stays float.

    A layer that the method does not cover becomes 8-bit SimQAT. Where several globs match a
    layer, each refines the one before.
    """
    names = list(layers)
    check_globs(overrides, names)
    result: dict[str, LayerSettings | None] = {}
    fallback_bits = None if default.act_bits is None else 8
    for name, layer in layers.items():
        covered = default.options.covers(layer)
        base = default if covered else layer_settings("simqat", 8, fallback_bits, {})
        result[name] = base
        for glob, override in overrides.items():
            if fnmatch.fnmatchcase(name, glob):
                result[name] = _refined(result[name] or base, override)
    if first_last_float:
        result |= dict.fromkeys(names[:1] + names[-1:])
    return {name: with_bits_it_reads(chosen, layers[name]) for name, chosen in result.items()}


def with_bits_it_reads(chosen: LayerSettings | None, layer: nn.Module) -> LayerSettings | None:
    """The settings without bits of what is read, for a layer that multiplies none of it, or in float."""
    if chosen is None or product_of(layer).reads_values:
        return chosen
    return replace(chosen, act_bits=None)


def check_globs(overrides: Mapping[str, Override], names: Sequence[str]) -> None:
    if not isinstance(overrides, Mapping):
        raise QdeployError(f"layers: given {overrides!r}, allowed: a table {{glob: override}}")
    for glob, override in overrides.items():
        if not fnmatch.filter(names, glob):
            raise QdeployError(
                f"layers: {glob!r} matches no layer; the network's layers are {', '.join(names)}"
            )
        is_table = isinstance(override, Mapping)
        unknown = sorted(set(override) - set(OVERRIDE_KEYS)) if is_table else []
        if unknown or not (is_table or override == FLOAT):
            raise QdeployError(
                f"layers: {glob!r} is given {unknown or override!r}; allowed is {FLOAT!r} or a "
                f"table of {', '.join(OVERRIDE_KEYS)}"
            )


def _refined(base: LayerSettings, override: Override) -> LayerSettings | None:
    if isinstance(override, str):
        return None
    method = override.get("method", base.method_name)
    inherited = base.options.model_dump() if method == base.method_name else {}
    act_bits = override.get("act_bits", base.act_bits)
    return layer_settings(
        method,
        override.get("weight_bits", base.weight_bits),
        None if act_bits == FLOAT else act_bits,
        {**inherited, **override.get("options", {})},
    )
