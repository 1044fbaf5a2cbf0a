"""What a quantization method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.folding import Fold
from qdeploy.layers.weight import WeightQuantizer


class Options(BaseModel):
    """A method's own settings, with defaults and constraints; subclassed by each method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def covers(self, layer: nn.Module) -> bool:
        """Whether the method quantizes this Conv or Linear; others become 8-bit SimQAT."""
        return True

    @property
    def fold_mode(self) -> Fold:
        """How BatchNorm takes part in training, see layers/folding.py."""
        return "none"

    @property
    def freeze_bn_steps(self) -> int | None:
        """Training steps after which folded BatchNorm statistics freeze; None: never."""
        return None


@dataclass(frozen=True)
class WeightSite:
    """Where a weight stands: its float values [out, ...], and whether a BatchNorm follows.

    A BatchNorm absorbs any scale of the weight; without one the method must carry the scale.
    """

    weight: Tensor
    normalized: bool


@dataclass(frozen=True)
class Method:
    """One paper.

    summary      one line for `qdeploy methods`
    paper        authors, venue, arXiv number
    weight       builds the weight quantizer of a layer: (site, bits, options)
    activation   builds an activation quantizer: (bits, options)
    weight_bits, act_bits   what it can do; float activations are always possible
    options      its settings
    """

    summary: str
    paper: str
    weight: Callable[[WeightSite, int, Any], WeightQuantizer]
    activation: Callable[[int, Any], ActivationQuantizer]
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    options: type[Options]
