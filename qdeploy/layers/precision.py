"""Mixed precision stops at the quantizers: their arithmetic, and that of norms, is float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in float32 if it has 16 bits, else x itself."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def in_float32(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A module's forward without autocast, on float32 inputs."""

    @wraps(forward)
    def run(module: Any, *inputs: Tensor | None) -> Tensor:
        device = next((kind for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind)), None)
        if device is None:
            return forward(module, *inputs)
        wide = [x if x is None else widened(x) for x in inputs]
        with torch.autocast(device, enabled=False):
            return forward(module, *wide)

    return run
