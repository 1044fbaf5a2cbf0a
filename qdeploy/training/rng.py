"""Torch's random numbers, which dropout draws from."""

import numpy as np
import torch

from qdeploy import processes


def seed_epoch(seed: int, epoch: int) -> None:
    """Let what torch draws in an epoch depend on the seed, the epoch and the process alone.

    So a resumed run draws the same numbers, and no two processes drop the same units.
    """
    sequence = np.random.SeedSequence([seed, epoch, processes.rank()])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
