"""PACT: activations clipped where the network learns to (Choi et al., arXiv 1805.06085).

y = (|x| - |x - alpha| + alpha) / 2, which is clip(x, 0, alpha), rounded to k bits; one alpha for
each tensor. Where no ReLU made the values: clip(x, -alpha, alpha). Weights are DoReFa-Net's.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import NO_DATA, extremes_of
from qdeploy.layers.fake_quantize import passed
from qdeploy.layers.learned_activation import StartsFromData
from qdeploy.methods.dorefa import BITS, BoundedActivation, weight
from qdeploy.methods.method import ActivationSite, Method, Options, measured_range

# The smallest range. Its gradient still passes below it, so that alpha can come back.
LEAST = 1e-3


class PactOptions(Options):
    """Settings of alpha, the value where activations are clipped.

    alpha         its start; if not given, taken from the first batch. The paper's 10 leaves
                  values of unit variance one or two levels at 2 and 3 bits, and alpha no
                  gradient to shrink by
    alpha_decay   weight decay of alpha, which `qdeploy.parameter_groups` gives an optimizer; the
                  paper uses that of the weights
    """

    alpha: PositiveFloat | None = None
    alpha_decay: NonNegativeFloat = 1e-4


class _LearnedClip(torch.autograd.Function):
    """y = clip(x, low, alpha), rounded; low is 0, or -alpha if signed.

    dy/dx      1 where low < x < alpha, else 0
    dy/dalpha  1 where x >= alpha, -1 where x <= -alpha if signed, else 0 (eq. 3)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, rounded: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.signed = signed
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = (saved.detach() for saved in ctx.saved_tensors)
        bound = alpha.clamp(min=LEAST)
        infinity = torch.full_like(bound, torch.inf)
        lowest = -bound if ctx.signed else torch.zeros_like(bound)
        to_alpha = passed(grad, x, torch.nextafter(bound, lowest), infinity).sum()
        if ctx.signed:
            to_alpha -= passed(grad, x, -infinity, torch.nextafter(lowest, bound)).sum()
        to_x = passed(grad, x, lowest, bound)
        return to_x, to_alpha.view_as(alpha), None, None


class PactActivation(StartsFromData, BoundedActivation):
    """Rounds clip(x, 0, alpha), or clip(x, -alpha, alpha); alpha is trained."""

    def __init__(self, site: ActivationSite, bits: int, options: PactOptions) -> None:
        super().__init__(site, bits)
        self.decays = {"alpha": options.alpha_decay}
        self.alpha = nn.Parameter(torch.zeros(1))
        if options.alpha is not None:
            self.alpha.data.fill_(options.alpha)
            self.seen.fill_(1)
            self.learning.fill_(True)

    @property
    def learned(self) -> nn.Parameter:
        return self.alpha

    def start_of(self, x: Tensor) -> Tensor:
        return first_alpha(x, self.grid.highest - self.middle)

    def bound(self) -> Tensor:
        if not self.has_range:
            raise QdeployError(NO_DATA)
        return self.number().detach().clamp(min=LEAST)

    def relax(self, x: Tensor) -> Tensor:
        rounded = self.round(x.detach())
        result: Tensor = _LearnedClip.apply(x, self.number(), rounded, self.signed)
        return result

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha.item():.6g}, alpha_decay={self.decays['alpha']:g}"


def first_alpha(x: Tensor, steps: int) -> Tensor:
    """2 mean|x| sqrt(steps), at most max|x|: where LSQ starts (Esser et al., arXiv 1902.08153)."""
    size = x.abs()
    mean, (_, largest) = processes.mean_of_values(size), processes.extremes(*extremes_of(size))
    return torch.minimum(2 * mean * steps**0.5, largest).clamp(min=LEAST)


METHOD = Method(
    summary="activations clipped where the network learns to, 2 to 8 bits; weights as DoReFa's",
    paper="Choi et al., arXiv 1805.06085",
    weight=weight,
    activation=PactActivation,
    weight_bits=BITS,
    act_bits=(2, 3, 4, 5, 6, 7, 8),
    options=PactOptions,
    carrier=measured_range,
)
