"""On which axis of each input the batch lies: found out by running the network on a longer batch, or said."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdeploy.deploy.open_axes import OpenAxes
from qdeploy.errors import QdeployError
from qdeploy.preparation.trace import described

Axes = tuple[int | None, ...]

CHOICES = (0, 1, None)
TOLERANCE = 1e-3  # of the mean size of a value: sums over other shapes are rounded otherwise


@torch.no_grad()
def batch_axes(
    network: nn.Module,
    inputs: Sequence[Tensor],
    allowed: Sequence[Sequence[int | None]] | None = None,
) -> Axes:
    """The batch axis of each input; None for what all samples share, such as a table.

    Where other samples follow, outputs are longer, and the first ones stay as they were; if samples
    see each other, as in a BatchNorm without statistics, outputs are only longer. All are None
    where no choice of axes is like that: then the batch cannot have another length.

    allowed   the axes that come into question for each input, 0, 1 and None by default
    """
    before = _tensors(network(*inputs))
    allowed = allowed or [CHOICES] * len(inputs)
    fitting = []
    for axes in _choices(inputs, allowed):
        after = _outputs(network, doubled(inputs, axes))
        if _is_longer(before, after):
            fitting.append(axes)
            if _goes_on(before, after):
                return _without_shared(axes, inputs, before, network, allowed)
    return fitting[0] if fitting else (None,) * len(inputs)


def said_axes(
    said: Mapping[str, int | None],
    names: Sequence[str],
    network: nn.Module,
    inputs: Sequence[Tensor],
    asked: OpenAxes,
) -> Axes:
    """The batch axis of each input, as the user says it for some of them and as it is found for others.

    said    {input: axis, or None for what all samples share}
    names   of the inputs
    asked   the axes that are open under other names

    Errors: QdeployError for an input or an axis that there is not, and if the network does not take
    a longer batch on these axes.
    """
    by_input = dict(zip(names, inputs, strict=True))
    for name, axis in said.items():
        if name not in by_input:
            raise QdeployError(
                f"batch_axes names {name!r}; allowed: {{input: axis or None}} of {', '.join(names)}"
            )
        axes = range(by_input[name].ndim)
        if axis is not None and axis not in axes:
            raise QdeployError(
                f"batch_axes says {axis!r} of {name}, which is {described([by_input[name]])}; allowed: "
                f"{', '.join(map(str, axes))}, or None for what all samples share"
            )
    # An open axis of another name is not the batch's.
    choices = [[axis for axis in CHOICES if axis not in others] for others in asked]
    pairs = zip(names, choices, strict=True)
    found = batch_axes(network, inputs, [[said[n]] if n in said else own for n, own in pairs])
    if any(
        axis is not None and axis != got
        for axis, got in zip(map(said.get, names), found, strict=True)
    ):
        raise QdeployError(
            f"batch_axes is {dict(said)!r}, and {type(network).__name__} takes no longer batch on these "
            f"axes of {described(inputs)}: leave it out, and it is found where there is one"
        )
    return found


def _without_shared(
    axes: Axes,
    inputs: Sequence[Tensor],
    before: Sequence[Tensor],
    network: nn.Module,
    allowed: Sequence[Sequence[int | None]],
) -> Axes:
    """The axes, but None for an input that may grow alone and changes nothing, where that is allowed."""
    if len(inputs) == 1:
        return axes
    kept = list(axes)
    for i, axis in enumerate(axes):
        if None not in allowed[i]:
            continue
        alone = doubled(inputs, [axis if i == j else None for j in range(len(axes))])
        if _is_same(before, _outputs(network, alone)):
            kept[i] = None
    return tuple(kept)


def _choices(inputs: Sequence[Tensor], allowed: Sequence[Sequence[int | None]]) -> Iterator[Axes]:
    """Axes of one length, at least one of them; those that lie on axis 0 most often come first."""
    given = zip(inputs, allowed, strict=True)
    each = [[axis for axis in own if axis is None or axis < x.ndim] for x, own in given]
    for axes in sorted(itertools.product(*each), key=lambda axes: sum(map(_rank, axes))):
        pairs = zip(inputs, axes, strict=True)
        if len({x.shape[axis] for x, axis in pairs if axis is not None}) == 1:
            yield axes


def _rank(axis: int | None) -> int:
    """What comes into question first: axis 0, then the others, then none."""
    return 2 if axis is None else min(axis, 1)


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
