"""SLB: searching for low-bit weights (Yang et al., NeurIPS 2020, arXiv 2009.08695).

Each weight holds a logit for each level it might take and trains as the expected level under
softmax(logits * temperature). The temperature rises by epochs until the distributions are
one-hot; then the search is committed: the best levels stay for good.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from qdeploy.errors import QdeployError
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
# How far a committed logit is ahead of the others. A softmax at temperature 1 is one-hot from 100 on. The
# rest is for what still moves logits whose gradients are zeros (DDP) and not absent: momentum of a hot
# search, Adam's decay. Each call of set_progress restores it.
MARGIN = 1e3
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
    """w = sum_k p_k level_k with p = softmax(logits * heat), over the last axis of the logits.

    dw/dlogit_k = heat p_k (level_k - w). Probabilities take as much memory as the logits, so they
    are computed a part at a time, again in the backward pass, and never kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, levels: Tensor, heat: Tensor) -> Tensor:
        parts = rows_of(logits)
        expected = torch.cat([torch.softmax(part * heat, -1) @ levels for part in parts])
        ctx.save_for_backward(logits, levels, heat, expected)
        return expected.reshape(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, levels, heat, expected = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient of the gradient is asked for
            return gradient_of_logits(logits, levels, heat, grad), None, None
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        slopes = (grad.reshape(-1) * heat).unsqueeze(-1)
        sizes = [len(part) for part in rows_of(logits)]
        columns = (values.split(sizes) for values in (expected.unsqueeze(-1), slopes))
        for part, out, level, slope in zip(rows_of(logits), rows_of(result), *columns, strict=True):
            torch.softmax(part * heat, -1, out=out)
            out.mul_((levels - level).mul_(slope))
        return result, None, None


def gradient_of_logits(logits: Tensor, levels: Tensor, heat: Tensor, grad: Tensor) -> Tensor:
    """What `_ExpectedLevel` gives the logits, in differentiable operators."""
    probabilities = torch.softmax(logits * heat, -1)
    expected = (probabilities @ levels).unsqueeze(-1)
    return probabilities * (levels - expected) * (heat * grad).unsqueeze(-1)


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

    inverse_temperature   1 / T, float32 scalar; 0 once the search is committed. It belongs to
                          the state, and every number has an average: of T itself, inf has none
    committed             the same as a flag, so that training need not wait for the device. Where
                          it lags behind, training multiplies by the same weight, only slower
    """

    codes: Tensor
    inverse_temperature: Tensor

    def __init__(self, site: WeightSite, bits: int, options: SlbOptions) -> None:
        super().__init__()
        self.bits = bits
        self.grid = Grid.odd(bits)
        self.options = options
        self.register_buffer("inverse_temperature", torch.tensor(1 / options.t_start_val))
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
        expected = self._hard(latent) if self.committed else self._soft(latent)
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

    def _soft(self, latent: Tensor) -> Tensor:
        """The expected levels, [out, ...]."""
        coolness = self.inverse_temperature.to(latent.dtype).clamp(min=1 / HOTTEST)
        if self.bits == 1:
            return torch.tanh(latent / (coolness * math.sqrt(2)))
        levels, heat = self.levels(latent), 1 / coolness
        if torch.compiler.is_compiling():
            # One loop comes of it, which keeps no probabilities either.
            return (torch.softmax(latent * heat, -1) * levels).sum(-1)
        result: Tensor = _ExpectedLevel.apply(latent, levels, heat)
        return result

    def _hard(self, latent: Tensor) -> Tensor:
        """The most probable levels, [out, ...]."""
        return self._chosen(latent) / self.grid.highest

    def _chosen(self, latent: Tensor) -> Tensor:
        """The most probable codes, as float32 [out, ...]."""
        if self.bits == 1:
            return signs(latent.detach())
        return self.codes[latent.detach().argmax(-1)].to(torch.float32)

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Heats the search up, and commits it at the end, for good: only an earlier state goes back.

        Errors: QdeployError if FSDP has cut the logits of single weights apart.
        """
        total = self.options.epoch_size or epochs + self.options.has_trained_epoch
        heat = temperature(epoch + 1 + self.options.has_trained_epoch, total, self.options)
        self.committed |= math.isinf(heat)
        if self.committed:
            self._harden()
        self.inverse_temperature.fill_(0 if self.committed else 1 / heat)

    @torch.no_grad()
    def _harden(self) -> None:
        """Puts the best levels so far ahead that no optimizer changes them any more.

        So the logits alone say that they are committed, also in an average of several states. Frozen
        ones keep their values: no optimizer moves them, and `inverse_temperature` says the same.
        """
        if self.latent.requires_grad:
            self.latent.copy_(hardened(self.latent, self.bits))
            self.latent.grad = None  # an optimizer passes by what has no gradient

    def progress(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    @property
    def temperature(self) -> float:
        """In the seven digits that float32 has; inf once committed."""
        coolness = self.inverse_temperature.item()
        return float(f"{1 / coolness:.7g}") if coolness else math.inf

    @property
    @torch.no_grad()
    def searching(self) -> bool:
        """Not once all distributions are one-hot, as those of a committed search are at any temperature.

        So an average of committed states is committed, though its temperature is finite.
        """
        if self.committed:
            return False
        return bool((self._soft(self.latent) != self._hard(self.latent)).any())

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.committed = not self.inverse_temperature

    def extra_repr(self) -> str:
        scale = "none (BatchNorm follows)" if self.log_scale is None else "learned"
        return (
            f"slb, bits={self.bits}, temperature={self.temperature:.6g}, scale={scale}, "
            f"{self.options}"
        )


def hardened(logits: Tensor, bits: int) -> Tensor:
    """Logits of the same best levels, which are ahead of all others by MARGIN at least.

    Errors: QdeployError for a piece of logits in which those of one weight are not together.
    """
    if bits == 1:
        return signs(logits) * logits.abs().clamp(min=MARGIN)
    if logits.ndim < 3:
        raise QdeployError(
            "the logits of a weight lie on several processes (FSDP), so its best level cannot be found: "
            "call prepared.set_progress inside FSDP.summon_full_params, or use fully_shard"
        )
    best = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    behind = logits.amax(-1, keepdim=True) - MARGIN
    return torch.where(best > 0, logits, torch.minimum(logits, behind))


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
