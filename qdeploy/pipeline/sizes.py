"""A file of open sizes, compared with the network on test images of three sizes."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.deploy.other_sizes import Sized
from qdeploy.proof.outputs import Form, Pixels
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.record import ProvenSize


def proven_by_codes(
    sizes: Sequence[Sized], compared: ComparedNetwork, pixels: Pixels | None
) -> tuple[ProvenSize, ...]:
    """Every code of the file at each size, which counts in the exactness of all; pixels: see Subject."""
    fed = pixels or (lambda images: images)
    return tuple(compared.at(one, [fed(x).numpy() for x in one.inputs]) for one in sizes)


def proven_by_outputs(sizes: Sequence[Sized], integers: Form, file: Form) -> tuple[ProvenSize, ...]:
    """How far apart the two are, where the target's codes cannot be compared with the integers'."""
    found = []
    for one in sizes:
        both = zip(integers(one.inputs), file(one.inputs), strict=True)
        largest = max(float((ours - other).abs().max()) for ours, other in both)
        found.append(ProvenSize(one.size, len(one.inputs[0]), None, None, largest))
    return tuple(found)
