"""What a quantization method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from qdeploy.grid import Grid
from qdeploy.layers.activation import ActivationQuantizer, MovingRange
from qdeploy.layers.norm import BatchNorm
from qdeploy.layers.product import PlainProduct, Product
from qdeploy.layers.quantized import Fold
from qdeploy.layers.weight import WeightQuantizer


class Options(BaseModel):
    """A method's own settings, with defaults and constraints; subclassed by each method."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def covers(self, layer: nn.Module) -> bool:
        """Whether the method quantizes this Conv or Linear; others become 8-bit SimQAT."""
        return True

    def check(self, act_bits: int | None) -> None:
        """Refuses activation bits (None: float) that these options cannot be combined with.

        A method whose options allow every number of bits leaves this as it is. Errors: QdeployError
        that says which bits are needed.
        """

    @property
    def fold_mode(self) -> Fold:
        """How BatchNorm takes part in training, see layers/quantized.py."""
        return "none"

    @property
    def freeze_bn_steps(self) -> int | None:
        """Training steps after which folded BatchNorm statistics freeze; None: never."""
        return None


@dataclass(frozen=True)
class WeightSite:
    """Where a weight stands: its float values [out, ...], and whether a BatchNorm follows.

    A BatchNorm absorbs any scale of the weight; without one the method must carry the scale.

    reduce_range   8 bits mean a symmetric grid, and 7 bits codes within -64..64: so that no sum of
                   int16 saturates, see preparation/reduce_range.py
    """

    weight: Tensor
    normalized: bool
    reduce_range: bool = False

    def signed_grid(self, bits: int) -> Grid:
        """-2^(bits-1) .. 2^(bits-1) - 1, without the lowest where reduce_range asks for it."""
        return Grid.signed(bits, narrow=self.reduce_range and bits == 8)


@dataclass(frozen=True)
class ActivationSite:
    """Where an activation stands: whether a ReLU made it, so that it has no negative values."""

    nonnegative: bool


def measured_range(bits: int, options: Options) -> MovingRange:
    """A `carrier` that keeps the whole range of a tensor, as it is measured.

    It suits methods that clip or binarize what a layer reads: other operators need all values.
    """
    return MovingRange(bits)


def as_it_is(part: Any, options: Any) -> Any:
    """A product or a norm that the method leaves alone. A lambda could not be pickled."""
    return part


@dataclass(frozen=True)
class Method:
    """One paper.

    summary      one line for `qdeploy methods`
    paper        authors, venue, arXiv number
    weight       builds the weight quantizer of a layer: (site, bits, options)
    activation   builds the quantizer of what a layer reads: (site, bits, options)
    weight_bits, act_bits   what it can do; float activations are always possible
    options      its settings

    And where the paper asks for it:

    carrier      builds the quantizer of tensors that are read by other operators, such as the
                 branches of an Add, and of the network's input: (bits, options), 8 bits or more.
                 None: `activation` builds these as well
    product      replaces a layer's product, for a gradient of its own: (product, options)
    norm         replaces a BatchNorm: (norm, options)
    """

    summary: str
    paper: str
    weight: Callable[[WeightSite, int, Any], WeightQuantizer]
    activation: Callable[[ActivationSite, int, Any], ActivationQuantizer]
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    options: type[Options]
    carrier: Callable[[int, Any], ActivationQuantizer] | None = None
    product: Callable[[PlainProduct, Any], Product] = as_it_is
    norm: Callable[[BatchNorm, Any], BatchNorm] = as_it_is
