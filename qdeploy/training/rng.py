"""The states of torch's random generators, by device type; dropout draws from them."""

import torch
from torch import Tensor


def rng_state() -> dict[str, Tensor]:
    """The generators' states now."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Put back what `rng_state` gave, as far as this machine has the devices."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
