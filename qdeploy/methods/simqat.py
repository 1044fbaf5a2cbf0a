"""SimQAT: simulated quantization with straight-through gradients.

Jacob et al., CVPR 2018; Krishnamoorthi, arXiv 1806.08342. The weight is rounded to a uniform
grid from the weight's minimum to its maximum, taken anew at every step.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, model_validator

from qdeploy.grid import Grid
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.quantized import Fold
from qdeploy.layers.uniform import UniformWeight, WeightRange
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite


class SimQatOptions(Options):
    """Defaults are the effective ones of the published implementation (Golden Stick).

    weight_symmetric, act_symmetric         0 is the middle code
    weight_per_channel                      a scale for each output channel
    weight_narrow_range, act_narrow_range   leave out the lowest code
    weight_range   scales reach the extremes ("minmax") or minimise the squared error ("mse")
    quant_delay    training steps in which nothing is rounded yet
    ema_decay      of the moving average of activation ranges
    fold           BatchNorm beside the weight ("none") or folded into it in training
                   ("one-conv", "two-conv"), see layers/quantized.py
    freeze_bn      training steps after which a folded BatchNorm keeps its statistics; if not
                   given, never
    """

    weight_symmetric: bool = True
    weight_per_channel: bool = True
    weight_narrow_range: bool = False
    weight_range: WeightRange = "minmax"
    act_symmetric: bool = False
    act_narrow_range: bool = False
    quant_delay: NonNegativeInt = 0
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    fold: Fold = "none"
    freeze_bn: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _freeze_needs_a_fold(self) -> SimQatOptions:
        if self.freeze_bn is not None and self.fold == "none":
            raise ValueError(
                "freeze_bn works on folded BatchNorm; set fold to one-conv or two-conv"
            )
        return self

    @property
    def fold_mode(self) -> Fold:
        return self.fold

    @property
    def freeze_bn_steps(self) -> int | None:
        return self.freeze_bn


def weight(site: WeightSite, bits: int, options: SimQatOptions) -> UniformWeight:
    return UniformWeight(
        site.weight,
        Grid.signed(bits, narrow=True) if options.weight_narrow_range else site.signed_grid(bits),
        symmetric=options.weight_symmetric,
        per_channel=options.weight_per_channel,
        weight_range=options.weight_range,
        quant_delay=options.quant_delay,
    )


def activation(site: ActivationSite, bits: int, options: SimQatOptions) -> MovingRange:
    return MovingRange(
        bits,
        symmetric=options.act_symmetric,
        narrow_range=options.act_narrow_range,
        decay=options.ema_decay,
        quant_delay=options.quant_delay,
    )


METHOD = Method(
    summary="simulated quantization with straight-through gradients, 2 to 8 bits",
    paper="Jacob et al., CVPR 2018, arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342",
    weight=weight,
    activation=activation,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    act_bits=(2, 3, 4, 5, 6, 7, 8),
    options=SimQatOptions,
)
