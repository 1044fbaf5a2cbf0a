"""Activation ranges from all that calibration saw: min-max, percentile, MSE and entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.fake_quantize import fake_quantize

BINS = 8192
STEPS = 32  # ranges that `mse` tries at a time, on each side of 0
THRESHOLDS = 128  # that `entropy` tries
LEAST_SHARE = 1e-9  # of the values, in a bin that `entropy` finds empty

MEAN = "mean"
Range = tuple[Tensor, Tensor]


class Histogram:
    """How often each value of a tensor was seen, in bins over -reach .. reach.

    The reach is a power of two. A batch that is larger doubles it, as often as it takes: two bins
    become one, so every count stays where it belongs. low, high: the extremes, exact.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.reach = 0.0
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    @property
    def edges(self) -> Tensor:
        """float64 [BINS + 1]."""
        return torch.linspace(-self.reach, self.reach, BINS + 1, dtype=torch.float64)

    @property
    def centres(self) -> Tensor:
        """float64 [BINS]."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    def add(self, x: Tensor) -> None:
        """Counts the values of x."""
        x = x.detach().flatten().float()
        low, high = (extreme.cpu() for extreme in torch.aminmax(x))
        largest = max(-low.item(), high.item())
        if not math.isfinite(largest):
            raise QdeployError(
                f"calibration met values from {low.item()} to {high.item()}; look for nan and inf in "
                "the images and in the network's weights"
            )
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        if largest == 0:
            return  # zeros alone say nothing of a range
        self._reach_to(2.0 ** math.ceil(math.log2(largest)))
        bins = ((x / self.reach + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(bins, minlength=BINS).cpu()

    def share(self, device: torch.device) -> None:
        """Joins what each process counted; they exchange tensors of `device`."""
        extremes = processes.extremes(self.low.to(device), self.high.to(device))
        self.low, self.high = (extreme.cpu() for extreme in extremes)
        reach = torch.tensor(self.reach, dtype=torch.float64, device=device)
        self._reach_to(processes.extremes(reach, reach)[1].item())
        self.counts = processes.total(self.counts.to(device)).cpu()

    def _reach_to(self, reach: float) -> None:
        """Doubles the reach up to a power of two, so that bins of all processes become the same."""
        self.reach = self.reach or reach
        while self.reach < reach:
            self._double()

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.reach *= 2

    def quantile(self, share: float) -> Tensor:
        """The value that `share` (0..1) of all values lie below, to within a bin."""
        reached = self.counts.cumsum(0)
        wanted = share * reached[-1]
        bin_ = torch.searchsorted(reached, wanted).clamp(max=BINS - 1)
        inside = (wanted - reached[bin_]) / self.counts[bin_].clamp(min=1) + 1
        value = self.edges[bin_] + inside * (2 * self.reach / BINS)
        return value.float().clamp(self.low, self.high)


def min_max(seen: Histogram, quantizer: MovingRange, percentile: float) -> Range:
    """The extremes of all batches."""
    return seen.low, seen.high


def percentile_range(seen: Histogram, quantizer: MovingRange, percentile: float) -> Range:
    """Leaves out 100 - percentile per cent of the values on either side."""
    return seen.quantile(1 - percentile / 100), seen.quantile(percentile / 100)


def mse(seen: Histogram, quantizer: MovingRange, percentile: float) -> Range:
    """The range whose rounding and clipping change the values least, in squares.

    Tries fractions of the extremes, then finer ones around the best.
    """
    ends = torch.stack([seen.low.clamp(max=0), seen.high.clamp(min=0)]).double()
    largest = best = ends
    for step in (ends / STEPS, 2 * ends / STEPS**2):
        count = torch.arange(STEPS, device=ends.device)[:, None]
        lows, highs = (largest - count * step).T
        tried = torch.cartesian_prod(lows.unique(), highs.unique())
        errors = [squared_error(seen, quantizer, part) for part in tried.split(STEPS)]
        best = tried[torch.cat(errors).argmin()]
        largest = torch.minimum((best + step).abs(), ends.abs()) * ends.sign()
    low, high = best.float()
    return low, high


def squared_error(seen: Histogram, quantizer: MovingRange, ranges: Tensor) -> Tensor:
    """The sum of squared errors that each of ranges [K, 2] leaves, [K]."""
    filled = seen.counts > 0
    values, counts = seen.centres[filled], seen.counts[filled]
    scale, zero = quantizer.qparams_of(*ranges.T[:, :, None])
    grid = quantizer.grid
    rounded = fake_quantize(values, scale, zero, grid.lowest, grid.highest)
    return (rounded - values).square() @ counts


def entropy(seen: Histogram, quantizer: MovingRange, percentile: float) -> Range:
    """The clipping |x| <= t that loses least information (Migacz, TensorRT, GTC 2017).

    As there, the bin of 0, which every grid holds exactly, counts as much as its neighbour.
    """
    middle = BINS // 2
    counts = seen.counts.clone()
    counts[middle] = counts[middle + 1]
    occupied = counts.nonzero()[:, 0].tolist() or [middle]
    first, end = min(occupied[0], middle), max(occupied[-1], middle) + 1
    levels, outmost = len(quantizer.grid.codes), max(middle - first, end - middle)
    thresholds = torch.linspace(min(levels, outmost), outmost, THRESHOLDS).long().unique().tolist()
    kept = [slice(max(first, middle - t), min(end, middle + t)) for t in thresholds]
    best = min(kept, key=lambda part: divergence(counts, part, levels))
    low, high = seen.edges[[best.start, best.stop]].float().clamp(seen.low, seen.high)
    return low, high


def divergence(counts: Tensor, part: slice, levels: int) -> float:
    """KL(P || Q): P the counts with all outside `part` on its ends, Q those inside, by level.

    A level's count is spread evenly over those of its bins that hold something.
    """
    inside = counts[part]
    p = inside.clone()
    p[0] += counts[: part.start].sum()
    p[-1] += counts[part.stop :].sum()
    level = torch.arange(len(inside)) * levels // len(inside)
    totals = torch.zeros(2, levels, dtype=torch.float64)
    totals.index_add_(1, level, torch.stack([inside, (inside > 0).double()]))
    spread = totals[0] / totals[1].clamp(min=1)
    q = torch.where(inside > 0, spread[level], 0)
    p, q = p / p.sum(), (q / q.sum().clamp(min=1)).clamp(min=LEAST_SHARE)
    return torch.special.xlogy(p, p / q).sum().item()


RANGES: dict[str, Callable[[Histogram, MovingRange, float], Range]] = {
    "minmax": min_max,
    "percentile": percentile_range,
    "mse": mse,
    "entropy": entropy,
}


def check_ranges(ranges: str, percentile: float) -> None:
    """Errors: QdeployError for ranges or a percentile that calibration does not have."""
    known = (MEAN, *RANGES)
    if ranges not in known:
        raise QdeployError(
            f"calibrate has no ranges {ranges!r}.{did_you_mean(str(ranges), known)} "
            f"Allowed: {', '.join(known)}"
        )
    if not 50 < percentile <= 100:
        raise QdeployError(
            f"percentile is {percentile}; allowed: above 50, up to 100, such as 99.99 per cent"
        )


@contextmanager
def measured(network: nn.Module, ranges: str, percentile: float) -> Iterator[None]:
    """Each measured range of `network` ends as RANGES[ranges] of what it sees inside the block.

    MEAN leaves the ranges as the quantizers themselves observed them.
    """
    if ranges == MEAN:
        yield
        return
    seen = {module: Histogram() for module in network.modules() if isinstance(module, MovingRange)}

    def see(quantizer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(quantizer, MovingRange)
        if inputs[0].numel():
            seen[quantizer].add(inputs[0])

    with ExitStack() as hooks:
        for quantizer in seen:
            hooks.enter_context(quantizer.register_forward_pre_hook(see))
        yield
    for quantizer, histogram in seen.items():
        histogram.share(quantizer.average.device)
        if quantizer.batches:
            quantizer.set_range(*RANGES[ranges](histogram, quantizer, percentile))
