"""The learning rate as a pure function of training progress: a resumed run needs no state."""

import math

from torch.optim import Optimizer

from qdeploy.recipe import TrainSection


def lr_factor(settings: TrainSection, progress: float) -> float:
    """The factor on `settings.lr` after `progress` epochs (fractional, 0 to `epochs`).

    Linear warm-up from 0 to 1 over `warmup_epochs`, then:

    - `cosine`: half a cosine from 1 to 0 over the epochs that remain (arXiv:1608.03983, eq. 5);
    - `step`: times `gamma` at each of `milestones`, counted in epochs from the start;
    - `constant`: 1, which is also what None means where a regime gives the learning rates;
      elsewhere it means `cosine`.
    """
    warmup = settings.warmup_epochs
    if progress < warmup:
        return progress / warmup
    schedule = settings.schedule or ("constant" if settings.regime_gives_lr else "cosine")
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (settings.epochs - warmup))
    if schedule == "step":
        return settings.gamma ** sum(progress >= milestone for milestone in settings.milestones)
    return 1.0


def set_lr(optimizer: Optimizer, settings: TrainSection, progress: float) -> float:
    """Give every parameter group the learning rate of `progress`, and return it."""
    lr = settings.lr * lr_factor(settings, progress)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
