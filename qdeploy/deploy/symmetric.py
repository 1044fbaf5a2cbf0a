"""Weights of int8 without a zero point, as runtimes want them that quantize symmetrically."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import QdeployError

LOWEST, HIGHEST = -128, 127

Array = npt.NDArray[Any]


def symmetric_codes(codes: Array, zero: Array, weight: str, target: str) -> Array:
    """int8 [out, ...]: the codes less their zero points, one for each output channel or for all.

    A channel that folding mirrored has 128 for -128: one step of one weight is cut off.

    Errors: QdeployError, naming weight and target, for codes that do not fit.
    """
    column = (-1, *[1] * (codes.ndim - 1))
    centred = codes.astype(np.int32) - zero.astype(np.int32).reshape(column)
    if centred.min() < LOWEST or centred.max() > HIGHEST + 1:
        raise QdeployError(
            f"target {target} has weights of int8 without a zero point; {weight} needs "
            f"{centred.min()}..{centred.max()}: train with symmetric weights of 8 bits or less, or "
            "leave the layer in float"
        )
    return centred.clip(max=HIGHEST).astype(np.int8)
