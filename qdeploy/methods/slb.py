"""SLB: searching for low-bit weights (Yang et al., NeurIPS 2020, arXiv 2009.08695).

Each weight holds a logit for each level it might take and trains as the expected level under
softmax(logits * temperature). The temperature rises by epochs until the distributions are
one-hot; then the search is committed: the best levels stay, their logits no longer train.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qdeploy.grid import Grid, QTensor, per_channel
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.weight import WeightQuantizer, signs
from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite

# Where the outermost level of the best uniform quantizer of normal values stands, in standard
# deviations (Max, IRE Trans. Information Theory, 1960, table II).
OUTERMOST = {2: 1.494, 4: 2.513}
# The published temperature when it turns hard, after rising for forty of a hundred epochs.
PUBLISHED_END = 1.2**40
# A softmax is one-hot long before this, and float32 overflows not long after.
HOTTEST = 1e30
# How many logits have their probabilities computed at once: a megabyte, which stays in a CPU's cache.
PART = 1 << 18


class SlbOptions(Options):
    """The options of the published implementation (Golden Stick), plus `linear` and `start`.

    t_start_val         temperature before it rises
    t_start_time        share of the epochs, rounded down, after which it rises
    t_factor            its factor per epoch from then on; if not given, the one that takes it to
                        the published 1,470 in any number of epochs: 1.2 in 100, as published,
                        and 6.2 in 10
    t_end_time          share of the epochs, rounded down; from the last of them on, the best
                        levels are kept for good
    epoch_size          epochs in all; if not given, those of this run and has_trained_epoch
    has_trained_epoch   epochs of the schedule that earlier runs have done
    linear              search Linear weights too; otherwise they are 8-bit SimQAT
    start               logits from the float weight ("weight") or from He-normal noise ("random")
    quant_delay         training steps in which activations are observed but stay float
    ema_decay           of the moving average of activation ranges
    """

    t_start_val: float = Field(default=1.0, ge=1e-30)
    t_start_time: float = Field(default=0.2, ge=0, le=1)
    t_end_time: float = Field(default=0.6, ge=0, le=1)
    t_factor: PositiveFloat | None = None
    epoch_size: PositiveInt | None = None
    has_trained_epoch: NonNegativeInt = 0
    linear: bool = False
    start: Literal["weight", "random"] = "weight"
    quant_delay: NonNegativeInt = 900
    ema_decay: float = Field(default=0.999, ge=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> SlbOptions:
        if self.t_end_time < self.t_start_time:
            raise ValueError(
                f"t_end_time ({self.t_end_time}) must not be before t_start_time ({self.t_start_time})"
            )
        if self.epoch_size is not None and self.has_trained_epoch >= self.epoch_size:
            raise ValueError(
                f"has_trained_epoch ({self.has_trained_epoch}) must be below epoch_size ({self.epoch_size})"
            )
        return self

    def covers(self, layer: nn.Module) -> bool:
        return self.linear or not isinstance(layer, nn.Linear)


def temperature(epoch: int, epochs: int, options: SlbOptions) -> float:
    """Temperature of an epoch, counted from 1 over the whole schedule; inf once committed.

    With start = int(epochs * t_start_time) and end = int(epochs * t_end_time):
    t_start_val up to `start`, then times t_factor an epoch (at most HOTTEST, at least 1 / HOTTEST),
    and inf (one-hot) from `end` on. Without a t_factor it rises so as to reach PUBLISHED_END at `end`.
    """
    start, end = int(epochs * options.t_start_time), int(epochs * options.t_end_time)
    if epoch >= end:
        return math.inf
    hotter = max(1.0, PUBLISHED_END / options.t_start_val)
    factor = options.t_factor or hotter ** (1 / max(1, end - start))
    rises = max(0, epoch - start)
    if rises * math.log(factor) > math.log(HOTTEST / options.t_start_val):
        return HOTTEST
    return max(options.t_start_val * factor**rises, 1 / HOTTEST)


class _ExpectedLevel(torch.autograd.Function):
    """w = sum_k p_k level_k with p = softmax(logits * T), over the last axis of the logits.

    dw/dlogit_k = T p_k (level_k - w). Probabilities take as much memory as the logits, so they are
    computed a part at a time, again in the backward pass, and never kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, levels: Tensor, heat: float) -> Tensor:
        parts = rows_of(logits)
        expected = torch.cat([torch.softmax(part * heat, -1) @ levels for part in parts])
        ctx.save_for_backward(logits, levels, expected)
        ctx.heat = heat
        return expected.reshape(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, levels, expected = ctx.saved_tensors
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        slopes = (grad.reshape(-1) * ctx.heat).unsqueeze(-1)
        sizes = [len(part) for part in rows_of(logits)]
        columns = (values.split(sizes) for values in (expected.unsqueeze(-1), slopes))
        for part, out, level, slope in zip(rows_of(logits), rows_of(result), *columns, strict=True):
            torch.softmax(part * ctx.heat, -1, out=out)
            out.mul_((levels - level).mul_(slope))
        return result, None, None


def rows_of(logits: Tensor) -> tuple[Tensor, ...]:
    """logits [..., levels] as parts [rows, levels] of PART values at most."""
    return logits.reshape(-1, logits.shape[-1]).split(PART // logits.shape[-1])


class SlbWeight(WeightQuantizer):
    """latent: logits [out, ..., 2^bits]; at 1 bit only their difference, [out, ...].

    With two logits a+ and a-, the expected level is tanh(T (a+ - a-) / 2). The one latent is
    b = (a+ - a-) / sqrt(2): an orthonormal change of coordinates, so that gradient descent with
    momentum and weight decay moves b exactly as it would move the pair.

    Where no BatchNorm follows, nothing would absorb the levels' scale, which grows by an order
    of magnitude as the search hardens. There the expected levels are divided by their own root
    mean square of each channel and multiplied by a learned scale, soft and hard alike.
    """

    codes: Tensor

    def __init__(self, site: WeightSite, bits: int, options: SlbOptions) -> None:
        super().__init__()
        self.bits = bits
        self.grid = Grid.odd(bits)
        self.options = options
        self.temperature = options.t_start_val
        self.trains = True
        self.register_buffer(
            "codes", torch.tensor(self.grid.codes, dtype=torch.int8), persistent=False
        )
        weight = site.weight.detach()
        if not site.normalized:
            weight = without_dead_channels(weight)
        logits = random_logits if options.start == "random" else logits_from_weight
        self.latent = nn.Parameter(logits(weight, bits, self.levels(weight)))
        self.log_scale = None if site.normalized else nn.Parameter(channel_rms(weight).log())

    def levels(self, like: Tensor) -> Tensor:
        """The 2^bits levels, evenly spaced over -1..1, in the type of `like`."""
        return self.codes.to(like) / self.grid.highest

    def relax(self, latent: Tensor) -> Tensor:
        expected = self._expected(latent)
        if self.log_scale is None:
            return expected
        return expected * per_channel(self.log_scale.exp() / channel_rms(expected), expected)

    def collapse(self, latent: Tensor) -> QTensor:
        codes = self._chosen(latent)
        if self.log_scale is None:
            scale = codes.new_tensor(1 / self.grid.highest)
        else:
            scale = self.log_scale.exp() / channel_rms(codes)
        return QTensor.symmetric(codes, scale, self.grid)

    def _expected(self, latent: Tensor) -> Tensor:
        if not self.searching:
            return self._chosen(latent) / self.grid.highest
        if self.bits == 1:
            return torch.tanh(latent * (self.temperature / math.sqrt(2)))
        result: Tensor = _ExpectedLevel.apply(latent, self.levels(latent), self.temperature)
        return result

    def _chosen(self, latent: Tensor) -> Tensor:
        """The most probable codes, as float32 [out, ...]."""
        if self.bits == 1:
            return signs(latent.detach())
        return self.codes[latent.detach().argmax(-1)].to(torch.float32)

    def set_progress(self, epoch: int, epochs: int) -> None:
        total = self.options.epoch_size or epochs + self.options.has_trained_epoch
        searched = self.searching
        self.temperature = temperature(
            epoch + 1 + self.options.has_trained_epoch, total, self.options
        )
        if searched and not self.searching:
            self.trains = self.latent.requires_grad  # unless the weight is frozen
        if searched != self.searching:
            self.latent.requires_grad_(self.trains and self.searching)
            self.latent.grad = None  # an optimizer skips what has no gradient

    def progress(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    @property
    def searching(self) -> bool:
        return math.isfinite(self.temperature)

    def extra_repr(self) -> str:
        scale = "none (BatchNorm follows)" if self.log_scale is None else "learned"
        return (
            f"slb, bits={self.bits}, temperature={self.temperature:.6g}, scale={scale}, "
            f"{self.options}"
        )


def channel_rms(weight: Tensor) -> Tensor:
    """Root mean square of each output channel, [out]; never 0."""
    tiny = torch.finfo(weight.dtype).tiny
    return weight.flatten(1).square().mean(1).clamp(min=tiny).sqrt()


def without_dead_channels(weight: Tensor) -> Tensor:
    """The weight, with He et al.'s noise, std sqrt(2 / fan_in), in channels that are all zero.

    Such a channel has no direction that a scale could multiply, and an infinite gradient.
    """
    he = math.sqrt(2 / weight[0].numel())
    dead = channel_rms(weight) <= 1e-6 * he
    return torch.where(per_channel(dead, weight), torch.randn_like(weight) * he, weight)


def random_logits(weight: Tensor, bits: int, levels: Tensor) -> Tensor:
    """He-normal noise, std sqrt(2 / (out * kernel * 2^bits)), as published."""
    kernel = weight[0, 0].numel()
    std = math.sqrt(2 / (weight.shape[0] * kernel * len(levels)))
    shape = weight.shape if bits == 1 else (*weight.shape, len(levels))
    return torch.randn(shape, dtype=weight.dtype, device=weight.device) * std


def logits_from_weight(weight: Tensor, bits: int, levels: Tensor) -> Tensor:
    """Logits that make the search start as the trained float network.

    A_k = -beta (w / s - level_k)^2 / 2 with s the best clipping point for normal weights and
    beta = s / mean(level^2). To first order in beta the expected level at T = 1 is then w
    itself, so the network still computes what it learned, and the most probable level is the
    one nearest to w / s, so hardening rounds. Large beta, the obvious choice, starts the search
    where the softmax is already flat and cannot move. At 1 bit the same reads tanh(b / sqrt 2) = w.
    """
    if bits == 1:
        return math.sqrt(2) * torch.atanh(weight.clamp(-0.999, 0.999))
    rms = weight.square().mean().sqrt()
    clip = OUTERMOST[bits] * rms.clamp(min=torch.finfo(weight.dtype).tiny)
    beta = clip / levels.square().mean()
    return -0.5 * beta * (weight.unsqueeze(-1) / clip - levels).square()


def activation(site: ActivationSite, bits: int, options: SlbOptions) -> MovingRange:
    return MovingRange(bits, decay=options.ema_decay, quant_delay=options.quant_delay)


METHOD = Method(
    summary="searches for low-bit weights with a rising temperature, 1, 2 or 4 bits",
    paper="Yang et al., NeurIPS 2020, arXiv 2009.08695",
    weight=SlbWeight,
    activation=activation,
    weight_bits=(1, 2, 4),
    act_bits=(8,),
    options=SlbOptions,
)
