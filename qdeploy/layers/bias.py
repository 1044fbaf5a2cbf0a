"""The int32 bias of an integer kernel: how fine its step is, and which way it is rounded.

The kernel adds it to the sums of products of codes, so its step is input scale x weight scale.
Where weights have few levels that step is coarse: a third of a 2-bit activation, say, rests on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.grid import Grid, QTensor, per_channel

# Two products of codes fit the int16 sums of processors without VNNI.
PAIR_LIMIT = 2**15 - 1
CODE_LIMIT = 2**7 - 1
BIAS_LIMIT = 2**30
SAFE_CODE = PAIR_LIMIT // (2 * 255)  # the largest that does so beside any uint8 codes
MARGIN = 0.1  # of a step


def spread_factor(weight: QTensor, input_highest: int) -> int:
    """What few-level codes are multiplied by: the larger the codes, the finer the bias.

    input_highest   the highest code of what they are multiplied with
    """
    limit = min(CODE_LIMIT, PAIR_LIMIT // (2 * input_highest))
    centred = weight.codes.to(torch.int32) - per_channel(weight.zero, weight.codes)
    largest = max(abs(weight.grid.lowest), weight.grid.highest, int(centred.abs().max()))
    return max(1, limit // largest)


def with_room_for_bias(weight: QTensor, bias: Tensor, input_scale: float) -> QTensor:
    """Raises the scale of channels so small that their bias would overflow int32.

    A dead channel (gamma 0) has scale 0 and a live bias. Its codes are rounded to the raised
    scale, so nothing is lost but what the bias drowns. A grid without 0 keeps the signs, so that
    what is left of the products cancels.
    """
    floor = bias.abs().to(torch.float64) / (BIAS_LIMIT * input_scale)
    floor = floor.clamp(min=1e-30 / input_scale)
    small = weight.scale < floor
    scale = torch.where(small, floor, weight.scale).to(torch.float32)
    codes = weight.codes.clone()
    shrink = per_channel((weight.scale[small] / scale[small]).clamp(min=1e-9), codes)
    zero = per_channel(weight.zero[small], codes)
    codes[small] = nearest((codes[small].to(torch.float64) - zero) * shrink + zero, weight.grid)
    return QTensor(codes, scale, weight.zero, weight.grid)


def nearest(values: Tensor, grid: Grid) -> Tensor:
    """The codes of the grid that are nearest to `values` (float64)."""
    levels = torch.tensor(grid.codes)
    between = (levels[1:] + levels[:-1]).to(torch.float64) / 2
    return levels[torch.searchsorted(between, values.contiguous())].to(grid.storage)


def rounded_to_keep_codes(bias: Tensor, thresholds: Tensor, spread: int) -> Tensor:
    """The integer below or above each `bias` that changes the fewest codes behind the layer.

    bias        float64 [out]
    thresholds  float64 [out, n], where the quantizer behind the layer changes its code; both in bias steps
    spread      the sums of products are multiples of it

    A code changes only where another multiple of `spread` is the first to cross a threshold, so a
    whole interval of biases around the true one gives the same codes. Both integers may lie in
    it: then the one with MARGIN to its ends is taken, which no rounding of floats tips over, and
    of two such the nearer one.
    """
    crossing = ((thresholds - bias[:, None]) / spread).ceil()  # the first multiple behind each
    lowest = thresholds - spread * crossing  # of the biases that leave it the first
    choices = torch.stack([bias.floor(), bias.ceil()])
    inside = choices[..., None] - lowest
    changed = ((inside < 0) | (inside >= spread)).sum(-1)
    close = ((inside < MARGIN) | (inside > spread - MARGIN)).sum(-1)
    rank = changed * (thresholds.shape[1] + 1) + close + (choices - bias).abs() / 2
    return torch.where(rank[1] < rank[0], choices[1], choices[0])


def finest_multiples(bias: Tensor) -> Tensor:
    """The code of each channel's one weight that leaves the least of its bias to be rounded off.

    bias [C] counts steps of the input times the gain. Times a code of 1 to 64 it becomes an
    integer, and one of these is far nearer to it than half of a step.
    """
    choices = torch.arange(1, SAFE_CODE + 1)
    products = bias.to(torch.float64).nan_to_num(0, 0, 0).unsqueeze(1) * choices
    return choices[((products - products.round()).abs() / choices).argmin(1)]
