"""The uniform weight quantizer: rounded to the range of the weight itself, at every step anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.grid import Grid
from qdeploy.layers.fake_quantize import affine_range, fake_quantize, quantize, symmetric_range
from qdeploy.layers.weight import Collapsed, WeightQuantizer, per_channel


class UniformWeight(WeightQuantizer):
    """latent: the float weight [out, ...], on a grid without holes.

    quant_delay   training steps before the rounding starts
    """

    steps: Tensor

    def __init__(
        self,
        weight: Tensor,
        grid: Grid,
        *,
        symmetric: bool = True,
        per_channel: bool = True,
        quant_delay: int = 0,
    ) -> None:
        super().__init__()
        self.latent = nn.Parameter(weight.detach().clone())
        self.grid = grid
        self.symmetric = symmetric
        self.per_channel = per_channel
        self.quant_delay = quant_delay
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
            f"bits={self.grid.bits}, symmetric={self.symmetric}, per_channel={self.per_channel}, "
            f"grid={self.grid}, quant_delay={self.quant_delay}"
        )
