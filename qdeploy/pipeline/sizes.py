"""A file of open sizes on test images of three sizes: checked before it is written, compared behind it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx

from qdeploy.deploy import other_sizes
from qdeploy.deploy.open_axes import names_of, open_axes_of
from qdeploy.deploy.other_sizes import Sized
from qdeploy.deploy.size_check import check_sizes
from qdeploy.deploy.target import find_target
from qdeploy.pipeline.build import Files, normalisation_of
from qdeploy.pipeline.trained_run import TrainedRun
from qdeploy.preparation.trace import Inputs, as_inputs
from qdeploy.proof.outputs import Form
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.record import ProvenSize


def sizes_to_prove(
    batch: Inputs, trained: TrainedRun, integers: fx.GraphModule, files: Files
) -> tuple[Sized, ...]:
    """The batch in its own size, a smaller and a larger one; none where the file's sizes are fixed.

    Errors: QdeployError if the network takes no other size, or the file computes something else at one.
    """
    axes = open_axes_of(files.model)
    if not names_of(axes):
        return ()
    network, export, data = (
        copy.deepcopy(integers).eval().cpu(),
        trained.recipe.export,
        trained.data,
    )
    sizes = other_sizes.sizes_to_prove(
        network, [x.cpu().contiguous() for x in as_inputs(batch)], axes
    )
    pixels = normalisation_of(data) if export.input == "uint8" else None
    check_sizes(files.model, network, find_target(export.target), sizes, pixels)
    return sizes


def proven_by_codes(
    sizes: Sequence[Sized], compared: ComparedNetwork, trained: TrainedRun
) -> tuple[ProvenSize, ...]:
    """Every code of the file at each size, which counts in the exactness of all."""
    pixels = trained.pixels or (lambda images: images)
    return tuple(compared.at(one, [pixels(x).numpy() for x in one.inputs]) for one in sizes)


def proven_by_outputs(sizes: Sequence[Sized], integers: Form, file: Form) -> tuple[ProvenSize, ...]:
    """How far apart the two are, where the target's codes cannot be compared with the integers'."""
    found = []
    for one in sizes:
        both = zip(integers(one.inputs), file(one.inputs), strict=True)
        largest = max(float((ours - other).abs().max()) for ours, other in both)
        found.append(ProvenSize(one.size, len(one.inputs[0]), None, None, largest))
    return tuple(found)
