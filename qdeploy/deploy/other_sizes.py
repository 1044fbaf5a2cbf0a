"""The sizes that a file of open sizes is proven on: the example's, a smaller and a larger one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdeploy.deploy.open_axes import BATCH, OpenAxes, names_of
from qdeploy.errors import QdeployError

# Of what the example has, axis by axis; those of one name grow alike. Axes that differ come first, for
# they tell height from width, then what is a multiple of the example's parts, then squares. Before
# all of them come odd sizes of the first kind, for they tell rounding up from rounding down.
SMALLER = ((3 / 4, 1 / 2), (1 / 2, 3 / 4), (3 / 4, 3 / 4), (1 / 2, 1 / 2))
LARGER = ((5 / 4, 3 / 2), (3 / 2, 2), (2, 3 / 2), (3 / 2, 3 / 2), (2, 2))


@dataclass(frozen=True)
class Sized:
    """A batch of one size; `size` is that in words: "24x16"."""

    size: str
    inputs: tuple[Tensor, ...]


def sizes_to_prove(
    network: nn.Module, inputs: Sequence[Tensor], axes: OpenAxes
) -> tuple[Sized, ...]:
    """The example, and the first smaller and the first larger batch that the network takes.

    axes   that are open, the batch among them, which stays

    Errors: QdeployError with what the network says if it takes no other size at all.
    """
    found = [Sized(size_in_words(inputs, axes), tuple(inputs))]
    refusals: dict[str, str] = {}
    for shares in (SMALLER, LARGER):
        for one in _candidates(inputs, axes, shares):
            refusal = _refusal(network, one.inputs)
            if refusal is None:
                found.append(one)
                break
            refusals[one.size] = refusal
    if len(found) == 1:
        size, refusal = next(iter(refusals.items()))
        raise QdeployError(
            f"the network takes no other {' and '.join(names_of(axes))} than {found[0].size}, so the file's "
            f"cannot be open: with {size} it stops with {refusal}. Leave out dynamic, or let forward compute "
            "with the sizes of its tensors"
        )
    return tuple(found)


def size_in_words(inputs: Sequence[Tensor], axes: OpenAxes) -> str:
    """The sizes of the open axes, each name once: "24x16"."""
    sizes = {
        name: x.shape[axis]
        for x, each in zip(inputs, axes, strict=True)
        for axis, name in sorted(each.items())
        if name != BATCH
    }
    return "x".join(map(str, sizes.values()))


def _candidates(
    inputs: Sequence[Tensor], axes: OpenAxes, shares: Sequence[tuple[float, float]]
) -> Iterator[Sized]:
    own = {size_in_words(inputs, axes)}
    for pair, odd in ((shares[0], True), *((pair, False) for pair in shares)):
        share = {name: pair[place % 2] for place, name in enumerate(names_of(axes))}
        batch = tuple(_resized(x, each, share, odd) for x, each in zip(inputs, axes, strict=True))
        if (size := size_in_words(batch, axes)) not in own:
            own.add(size)
            yield Sized(size, batch)


def _resized(x: Tensor, axes: dict[int, str], share: dict[str, float], odd: bool) -> Tensor:
    """The values again from the start where there are more; odd: what is even gets one more."""
    for axis, name in axes.items():
        if name != BATCH:
            length = max(1, int(x.shape[axis] * share[name])) | odd
            x = x.index_select(axis, torch.arange(length, device=x.device) % x.shape[axis])
    return x


def _refusal(network: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """What the network says where it does not take the inputs."""
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):  # where a graph prints what it raises
            network(*(x.clone() for x in inputs))
    except Exception as error:  # whatever the user's code raises means no
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None
