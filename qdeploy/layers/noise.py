"""Random numbers for the stochastic rounding of gradients, at the price of a sum."""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.errors import QdeployError


def pairwise_uniform(like: Tensor) -> Tensor:
    """Numbers in 0..1 for like [N, ...]: each uniform, any two of them independent.

    One number for each sample and one for each place in it, added modulo 1. Rounding with them has
    the mean and the variance of rounding with fully independent numbers, and so has every sum of
    rounded values, such as a weight's gradient: covariances involve two numbers at a time. A CPU
    draws independent numbers one after the other, ten times as slowly.
    """
    samples = torch.rand(len(like), *[1] * (like.ndim - 1), device=like.device)
    places = torch.rand_like(like[:1])
    return torch.add(samples, places, out=torch.empty_like(like)).frac_()


def refuse_gradient_penalty(method: str, way_out: str) -> None:
    """Called in the backward pass of a method that rounds gradients at random: those have no gradient.

    Errors: QdeployError where one is asked for (`create_graph=True`).
    """
    if torch.is_grad_enabled():
        raise QdeployError(
            f"{method} rounds gradients at random, so they have no gradient, which create_graph=True asks "
            f"for (a gradient penalty): {way_out}, or take the penalty of the float network"
        )
