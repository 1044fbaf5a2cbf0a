"""Ternary weight networks (Li, Zhang and Liu, arXiv 1605.04711).

Weights smaller than 0.7 times their mean size become 0, the others plus or minus the mean size
of those that are kept. Both are taken anew from the float weight at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.grid import Grid, QTensor
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.fake_quantize import straight_through
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite

# Of the mean |w|: close to the best threshold for normal and for uniform weights (section 2.3).
THRESHOLD = 0.7


class TernaryOptions(Options):
    """per_channel   a threshold and a scale for each output channel, not one for the layer"""

    per_channel: bool = False


class TernaryWeight(WeightQuantizer):
    """latent: the float weight [out, ...]. It trains as alpha t, with a straight-through gradient.

    t = sign(w) where |w| > delta, else 0;  delta = 0.7 mean |w|;  alpha = <t, w> / <t, t>
    """

    def __init__(self, site: WeightSite, bits: int, options: TernaryOptions) -> None:
        super().__init__()
        self.latent = nn.Parameter(site.weight.detach().clone())
        self.grid = Grid((-1, 0, 1))
        self.per_channel = options.per_channel

    def relax(self, latent: Tensor) -> Tensor:
        return straight_through(self.collapse(latent).dequantize(), latent)

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> QTensor:
        rows = latent.flatten(1) if self.per_channel else latent.reshape(1, -1)
        size = rows.abs()
        kept = size > THRESHOLD * size.mean(1, keepdim=True)
        # All-zero weights keep none.
        alpha = (size * kept).sum(1) / kept.sum(1).clamp(min=1)
        scale = alpha.clamp(min=torch.finfo(torch.float32).tiny)
        codes = (rows.sign() * kept).reshape(latent.shape)
        return QTensor.symmetric(codes, scale, self.grid)

    def extra_repr(self) -> str:
        return f"ternary, per_channel={self.per_channel}"


def activation(site: ActivationSite, bits: int, options: TernaryOptions) -> MovingRange:
    return MovingRange(bits)


METHOD = Method(
    summary="weights -1, 0 and 1 times a scale, 1.6 bits each in the file",
    paper="Li, Zhang and Liu, 2016, arXiv 1605.04711",
    weight=TernaryWeight,
    activation=activation,
    weight_bits=(2,),
    act_bits=(2, 3, 4, 5, 6, 7, 8),
    options=TernaryOptions,
)
