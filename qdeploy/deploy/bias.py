"""The int32 bias of an integer kernel: how fine its step is, and which way it is rounded.

The kernel adds it to the sums of products of codes, so its step is input scale x weight scale.
Where weights have few levels that step is coarse: a third of a 2-bit activation, say, rests on it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qdeploy.grid import Array, Grid, QTensor

# Two products of codes fit the int16 sums of processors without VNNI.
PAIR_LIMIT = 2**15 - 1
CODE_LIMIT = 2**7 - 1
BIAS_LIMIT = 2**30
NORM_LIMIT = PAIR_LIMIT // (2 * 255)


def spread_factor(weight: QTensor, input_highest: int) -> int:
    """What few-level codes are multiplied by: the larger the codes, the finer the bias.

    input_highest   the highest code of what they are multiplied with
    """
    limit = min(CODE_LIMIT, PAIR_LIMIT // (2 * input_highest))
    grid, column = weight.grid, (-1, *[1] * (weight.codes.ndim - 1))
    centred = np.abs(weight.codes.astype(np.int32) - weight.zero.reshape(column))
    return max(1, limit // max(abs(grid.lowest), grid.highest, int(centred.max())))


def with_room_for_bias(weight: QTensor, bias: Tensor, input_scale: float) -> QTensor:
    """Raises the scale of channels so small that their bias would overflow int32.

    A dead channel (gamma 0) has scale 0 and a live bias. Its codes are rounded to the raised
    scale, so nothing is lost but what the bias drowns. A grid without 0 keeps the signs, so that
    what is left of the products cancels.
    """
    floor = bias.abs().to(torch.float64).numpy() / (BIAS_LIMIT * input_scale)
    floor = np.maximum(floor, 1e-30 / input_scale)
    small = weight.scale < floor
    scale = np.where(small, floor, weight.scale).astype(np.float32)
    column = (-1, *[1] * (weight.codes.ndim - 1))
    shrink = np.maximum(weight.scale[small] / scale[small], 1e-9).reshape(column)
    zero = weight.zero[small].reshape(column)
    codes = weight.codes.copy()
    codes[small] = nearest((codes[small].astype(np.float64) - zero) * shrink + zero, weight.grid)
    return QTensor(codes, scale, weight.zero, weight.grid)


def nearest(values: Array, grid: Grid) -> Array:
    """The codes of the grid that are nearest to `values`."""
    levels = np.array(grid.codes)
    codes: Array = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return codes.astype(grid.storage)


def deciding(bias: Array, thresholds: Array, spread: int) -> Array:
    """Integers near `bias` [out], with which a layer's output falls on the same codes as with it.

    thresholds  [out, n] where the quantizer behind the layer changes its code; all in bias steps
    spread      the sums of products are multiples of it

    Only where a multiple of `spread` crosses a threshold does a code change, so a whole interval
    of biases gives the same codes, and an integer in it loses nothing. With several thresholds
    the intervals may have none in common: then the fewest thresholds are wronged.
    """
    crossed = np.ceil((thresholds - bias[:, None]) / spread)  # the first multiple behind each
    lowest = np.sort(thresholds - spread * crossed, axis=1)  # of the biases that keep it
    near = np.rint(bias)[:, None] + np.arange(-spread, spread + 1)
    chosen = np.empty(len(bias))
    for channel, (choices, low) in enumerate(zip(near, lowest, strict=True)):
        wronged = np.searchsorted(low + spread, choices, "right") + len(low)
        wronged -= np.searchsorted(low, choices, "right")
        distance = np.abs(choices - bias[channel])
        chosen[channel] = choices[np.lexsort((distance, wronged))[0]]
    return chosen


def finest_multiples(bias: Tensor) -> Tensor:
    """The code of each channel's one weight that leaves the least of its bias to be rounded off.

    bias [C] counts steps of the input times the gain. Times a code of 1 to 64 it becomes an
    integer, and one of these is far nearer to it than half of a step.
    """
    choices = torch.arange(1, NORM_LIMIT + 1)
    products = bias.to(torch.float64).nan_to_num(0, 0, 0).unsqueeze(1) * choices
    return choices[((products - products.round()).abs() / choices).argmin(1)]
