"""SimQAT: simulated quantization with straight-through gradients.

Jacob et al., CVPR 2018; Krishnamoorthi, arXiv 1806.08342. The weight is rounded to a uniform
grid whose range is the weight's own minimum and maximum, at every step anew.
"""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from qdeploy.grid import Grid
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.fake_quantize import affine_range, fake_quantize, quantize, symmetric_range
from qdeploy.layers.folding import Fold
from qdeploy.layers.weight import Collapsed, WeightQuantizer, per_channel
from qdeploy.methods.method import Method, Options, WeightSite


class SimQatOptions(Options):
    """Defaults are the effective ones of the published implementation."""

    weight_symmetric: bool = True
    weight_per_channel: bool = True
    weight_narrow_range: bool = False
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


class SimQatWeight(WeightQuantizer):
    """latent: the float weight [out, ...]. Signed grid of 2 to 8 bits."""

    steps: Tensor

    def __init__(self, site: WeightSite, bits: int, options: SimQatOptions) -> None:
        super().__init__()
        self.latent = nn.Parameter(site.weight.detach().clone())
        self.grid = Grid.signed(bits, options.weight_narrow_range)
        self.bits = bits
        self.symmetric = options.weight_symmetric
        self.per_channel = options.weight_per_channel
        self.quant_delay = options.quant_delay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def relax(self, latent: Tensor) -> Tensor:
        if self.quant_delay:
            self.steps += 1
            if self.steps <= self.quant_delay:
                return latent
        scale, zero = (per_channel(part, latent) for part in self.qparams(latent))
        return fake_quantize(latent, scale, zero, self.grid.lowest, self.grid.highest)

    def collapse(self, latent: Tensor) -> Collapsed:
        scale, zero = self.qparams(latent)
        low, high = self.grid.lowest, self.grid.highest
        codes = quantize(latent, per_channel(scale, latent), per_channel(zero, latent), low, high)
        return Collapsed(codes.to(torch.int8), scale, zero.to(torch.int8))

    @torch.no_grad()
    def qparams(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 [out] each."""
        rows = latent.detach().flatten(1)
        minimum, maximum = rows.amin(1), rows.amax(1)
        if not self.per_channel:
            minimum, maximum = minimum.min().expand_as(minimum), maximum.max().expand_as(maximum)
        low, high = self.grid.lowest, self.grid.highest
        if not self.symmetric:
            return affine_range(minimum, maximum, low, high)
        magnitude = torch.maximum(minimum.abs(), maximum.abs())
        return symmetric_range(magnitude, low, high), torch.zeros_like(magnitude)

    def extra_repr(self) -> str:
        return (
            f"simqat, bits={self.bits}, symmetric={self.symmetric}, per_channel={self.per_channel}, "
            f"grid={self.grid}, quant_delay={self.quant_delay}"
        )


def activation(bits: int, options: SimQatOptions) -> MovingRange:
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
    weight=SimQatWeight,
    activation=activation,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    act_bits=(2, 3, 4, 5, 6, 7, 8),
    options=SimQatOptions,
)
