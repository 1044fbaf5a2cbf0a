"""On which axis of each input the batch lies: found out by running the network on a longer batch."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Axes = tuple[int | None, ...]

CHOICES = (0, 1, None)
TOLERANCE = 1e-3  # of the mean size of a value: sums over other shapes are rounded otherwise


@torch.no_grad()
def batch_axes(network: nn.Module, inputs: Sequence[Tensor]) -> Axes:
    """The batch axis of each input, 0 or 1; None for what all samples share, such as a table.

    Where other samples follow, outputs are longer, and the first ones stay as they were; if samples
    see each other, as in a BatchNorm without statistics, outputs are only longer. All are None
    where no choice of axes is like that: then the batch cannot have another length.
    """
    before = _tensors(network(*inputs))
    fitting = []
    for axes in _choices(inputs):
        after = _outputs(network, doubled(inputs, axes))
        if _is_longer(before, after):
            fitting.append(axes)
            if _goes_on(before, after):
                return _without_shared(axes, inputs, before, network)
    return fitting[0] if fitting else (None,) * len(inputs)


def _without_shared(
    axes: Axes, inputs: Sequence[Tensor], before: Sequence[Tensor], network: nn.Module
) -> Axes:
    """The axes, but None for an input that may grow alone and changes nothing."""
    if len(inputs) == 1:
        return axes
    kept = list(axes)
    for i, axis in enumerate(axes):
        alone = doubled(inputs, [axis if i == j else None for j in range(len(axes))])
        if _is_same(before, _outputs(network, alone)):
            kept[i] = None
    return tuple(kept)


def _choices(inputs: Sequence[Tensor]) -> Iterator[Axes]:
    """Axes of one length, at least one of them; those that lie on axis 0 most often come first."""
    each = [[axis for axis in CHOICES if axis is None or axis < x.ndim] for x in inputs]
    for axes in sorted(itertools.product(*each), key=lambda axes: sum(map(CHOICES.index, axes))):
        pairs = zip(inputs, axes, strict=True)
        if len({x.shape[axis] for x, axis in pairs if axis is not None}) == 1:
            yield axes


def doubled(inputs: Sequence[Tensor], axes: Sequence[int | None]) -> list[Tensor]:
    """The inputs, followed by as many other samples."""
    return [
        x if axis is None else torch.cat([x, _other(x)], axis)
        for x, axis in zip(inputs, axes, strict=True)
    ]


def _other(x: Tensor) -> Tensor:
    """Other values of the same kind: numbers of a table's rows stay such."""
    return x / 2 + 1 if x.is_floating_point() else x.flip(tuple(range(x.ndim)))


def _outputs(network: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the network gives; nothing where it does not take the inputs."""
    try:
        with redirect_stderr(io.StringIO()):  # where a graph prints what it then raises
            return _tensors(network(*inputs))
    except Exception:  # whatever the user's code raises means no
        return []


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _is_longer(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether some outputs are twice as large, and the others as large as before."""
    if [old.ndim for old in before] != [new.ndim for new in after]:
        return False
    pairs = list(zip(before, after, strict=True))
    doubled = [new.numel() == 2 * old.numel() for old, new in pairs]
    same = [new.shape == old.shape for old, new in pairs]
    return any(doubled) and all(a or b for a, b in zip(doubled, same, strict=True))


def _goes_on(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether outputs begin as they were."""
    beginnings = [new[tuple(map(slice, old.shape))] for old, new in zip(before, after, strict=True)]
    return _is_same(before, beginnings)


def _is_same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    shapes = [old.shape for old in before] == [new.shape for new in after]
    return shapes and all(map(_is_close, before, after))


def _is_close(old: Tensor, new: Tensor) -> bool:
    old, new = (torch.nan_to_num(x.double()) for x in (old, new))
    return bool((new - old).abs().mean() <= TOLERANCE * old.abs().mean())
