"""The uniform weight quantizer: rounded to the range of the weight itself, at every step anew."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qdeploy.grid import Grid, QTensor, per_channel
from qdeploy.layers.fake_quantize import fake_quantize, quantize, range_on
from qdeploy.layers.modes import delayed
from qdeploy.layers.weight import WeightQuantizer

WeightRange = Literal["minmax", "mse"]
# Of the range that `mse` tries. Above 1: the highest code of a symmetric grid is half a step short.
FRACTIONS = [1.08 - step / 50 for step in range(40)]


class UniformWeight(WeightQuantizer):
    """latent: the float weight [out, ...], on a grid without holes.

    weight_range  "minmax" of each channel, or the range of the least squared error ("mse")
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
        weight_range: WeightRange = "minmax",
        quant_delay: int = 0,
    ) -> None:
        super().__init__()
        self.latent = nn.Parameter(weight.detach().clone())
        self.grid = grid
        self.symmetric = symmetric
        self.per_channel = per_channel
        self.weight_range = weight_range
        self.quant_delay = quant_delay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def relax(self, latent: Tensor) -> Tensor:
        if self.quant_delay:
            return delayed(self.steps, self.quant_delay, latent, lambda: self._rounded(latent))
        return self._rounded(latent)

    def _rounded(self, latent: Tensor) -> Tensor:
        scale, zero = (per_channel(part, latent) for part in self.qparams(latent))
        return fake_quantize(latent, scale, zero, self.grid.lowest, self.grid.highest)

    def collapse(self, latent: Tensor) -> QTensor:
        scale, zero = self.qparams(latent)
        low, high = self.grid.lowest, self.grid.highest
        codes = quantize(latent, per_channel(scale, latent), per_channel(zero, latent), low, high)
        return QTensor(codes.to(torch.int8), scale, zero.to(torch.int8), self.grid)

    def float_weight(self, gain: Tensor | None = None) -> Tensor:
        return self.scaled_latent(gain)

    @torch.no_grad()
    def qparams(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 [out] each."""
        rows = latent.detach().flatten(1) if self.per_channel else latent.detach().reshape(1, -1)
        ends = rows.amin(1), rows.amax(1)
        scale, zero = range_on(self.grid, *ends, self.symmetric)
        if self.weight_range == "mse":
            scale, zero = self.least_squares(rows, *ends)
        return scale.expand(len(latent)), zero.expand(len(latent))

    def least_squares(
        self, rows: Tensor, minimum: Tensor, maximum: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the fraction of each row's range that leaves the least error."""
        low, high = self.grid.lowest, self.grid.highest
        scale, zero = range_on(self.grid, minimum, maximum, self.symmetric)
        least = torch.full_like(scale, torch.inf)
        for fraction in FRACTIONS:
            tried = range_on(self.grid, fraction * minimum, fraction * maximum, self.symmetric)
            rounded = fake_quantize(rows, tried[0][:, None], tried[1][:, None], low, high)
            error = (rounded - rows).square().sum(1)
            better = error < least
            scale, zero = torch.where(better, tried[0], scale), torch.where(better, tried[1], zero)
            least = torch.minimum(error, least)
        return scale, zero

    def extra_repr(self) -> str:
        return (
            f"bits={self.grid.bits}, symmetric={self.symmetric}, per_channel={self.per_channel}, "
            f"grid={self.grid}, weight_range={self.weight_range}, quant_delay={self.quant_delay}"
        )
