"""LSQ: learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153).

Weights and activations are rounded to multiples of a step, and the step is trained with them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.grid import Grid, QTensor, per_channel
from qdeploy.layers.activation import NO_DATA
from qdeploy.layers.fake_quantize import passed, product, quantize
from qdeploy.layers.learned_activation import StartsFromData
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite, measured_range


class LsqOptions(Options):
    """per_channel   a step for each output channel of a weight, not one for the layer"""

    per_channel: bool = False


class _LearnedStep(torch.autograd.Function):
    """v^ = s clip(round(v / s), -Qn, Qp), with the gradients of the paper's equations 3 and 5.

    dv^/dv = 1 where -Qn < v / s < Qp, else 0
    dv^/ds = round(v / s) - v / s there, -Qn below and Qp above; times g

    Both are constants where they are differentiated again, as those of v + s (round(r) - r).detach() with
    r = v / s would be.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, s: Tensor, qn: int, qp: int, g: float) -> Tensor:
        ctx.save_for_backward(v, s)
        ctx.limits = -qn, qp
        ctx.g = g
        return torch.div(v, s).clamp_(-qn, qp).round_().mul_(s)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        v, s = (saved.detach() for saved in ctx.saved_tensors)
        low, high = ctx.limits
        ratio = v / s
        to_v = passed(grad, ratio, *(ratio.new_tensor(float(end)) for end in (low, high)))
        # The slope's two terms apart: round(v / s), clipped, everywhere, and - v / s inside.
        levels = ratio.clamp(low, high).round_()
        to_s = (product(levels, grad) - product(ratio, to_v)).sum_to_size(s.shape)
        return to_v, to_s * ctx.g, None, None, None


def learned_step(v: Tensor, s: Tensor, grid: Grid, zero: int, sharing: int) -> Tensor:
    """v rounded to steps of s; `sharing` is N, the number of values that the step serves.

    The gradient of s is scaled by g = 1 / sqrt(N Qp), so that steps move, relative to their
    size, about as fast as weights (section 2.2).
    """
    qn, qp = zero - grid.lowest, grid.highest - zero
    result: Tensor = _LearnedStep.apply(v, s, qn, qp, 1 / math.sqrt(sharing * qp))
    return result


def positive(parameter: Tensor) -> Tensor:
    """The step that a parameter stands for: its absolute value, never 0.

    An optimizer may take a parameter below 0. The step then grows again, and no weight changes
    its sign. Above 0, step and gradient are those of the parameter itself.
    """
    size = torch.where(parameter < 0, -parameter, parameter)
    return size + torch.finfo(torch.float32).tiny


def first_step(mean_size: Tensor, highest: int) -> Tensor:
    """2 mean |v| / sqrt(Qp): where a step starts (section 2.1)."""
    return 2 * mean_size / math.sqrt(highest)


class LsqWeight(WeightQuantizer):
    """latent: the float weight [out, ...]; step: [1], or [out] per channel.

    Qn = 2^(bits-1), Qp = 2^(bits-1) - 1. The step of weights that are all zero starts as for
    He-normal ones, std sqrt(2 / fan_in).
    """

    def __init__(self, site: WeightSite, bits: int, options: LsqOptions) -> None:
        super().__init__()
        weight = site.weight.detach()
        self.latent = nn.Parameter(weight.clone())
        self.grid = site.signed_grid(bits)
        rows = weight.flatten(1) if options.per_channel else weight.reshape(1, -1)
        self.sharing = rows.shape[1]
        mean_size = rows.abs().mean(1)
        he_normal = math.sqrt(2 / weight[0].numel()) * math.sqrt(2 / math.pi)
        mean_size = torch.where(mean_size > 0, mean_size, he_normal)
        self.step = nn.Parameter(first_step(mean_size, self.grid.highest))

    def relax(self, latent: Tensor) -> Tensor:
        step = per_channel(positive(self.step), latent)
        return learned_step(latent, step, self.grid, 0, self.sharing)

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> QTensor:
        step = positive(self.step)
        column = per_channel(step, latent)
        zero = torch.zeros_like(column)
        codes = quantize(latent, column, zero, self.grid.lowest, self.grid.highest)
        return QTensor.symmetric(codes, step, self.grid)

    def extra_repr(self) -> str:
        return f"lsq, grid={self.grid}, steps={len(self.step)}"


class LsqActivation(StartsFromData):
    """One learned step. Behind a ReLU Qn = 0 and Qp = 2^bits - 1, elsewhere as for weights.

    The step starts where section 2.1 has it, on a batch (see `StartsFromData`). A tensor of zeros
    starts as if its mean size were 1.
    """

    def __init__(self, site: ActivationSite, bits: int, options: LsqOptions) -> None:
        super().__init__(Grid.unsigned(bits))
        self.zero = 0 if site.nonnegative else 1 << (bits - 1)
        self.step = nn.Parameter(torch.zeros(1))

    @property
    def learned(self) -> nn.Parameter:
        return self.step

    @property
    def can_take_over_relu(self) -> bool:
        return self.zero == 0

    def start_of(self, x: Tensor) -> Tensor:
        mean_size = processes.mean_of_values(x.abs())
        mean_size = torch.where(mean_size == 0, 1.0, mean_size)
        return first_step(mean_size, self.grid.highest - self.zero)

    def relax(self, x: Tensor) -> Tensor:
        features = x.shape[1:].numel()
        return learned_step(x, positive(self.number()), self.grid, self.zero, features)

    def qparams(self) -> tuple[Tensor, Tensor]:
        if not self.has_range:
            raise QdeployError(NO_DATA)
        step = positive(self.number().detach())
        return step, torch.full_like(step, self.zero)

    def extra_repr(self) -> str:
        return f"lsq, grid={self.grid}, zero={self.zero}"


METHOD = Method(
    summary="learned step sizes for weights and activations, 2 to 8 bits",
    paper="Esser et al., ICLR 2020, arXiv 1902.08153",
    weight=LsqWeight,
    activation=LsqActivation,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    act_bits=(2, 3, 4, 5, 6, 7, 8),
    options=LsqOptions,
    carrier=measured_range,
)
