"""A file of open sizes on test images of three sizes: checked before it is written, compared behind it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from torch import Tensor, fx

from qdeploy.deploy import other_sizes
from qdeploy.deploy.open_axes import names_of, open_axes_of
from qdeploy.deploy.other_sizes import Sized
from qdeploy.deploy.size_check import check_sizes
from qdeploy.deploy.target import find_target
from qdeploy.pipeline.build import Files
from qdeploy.pipeline.trained_run import TrainedRun
from qdeploy.proof.outputs import Classifier
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.record import ProvenSize


def sizes_to_prove(
    images: Tensor, trained: TrainedRun, integers: fx.GraphModule, files: Files
) -> tuple[Sized, ...]:
    """The images in their own size, a smaller and a larger one; none where the file's sizes are fixed.

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
    sizes = other_sizes.sizes_to_prove(network, [images.cpu().contiguous()], axes)
    pixels = (data.mean, data.std) if export.input == "uint8" else None
    check_sizes(files.model, network, find_target(export.target), sizes, pixels)
    return sizes


def proven_by_codes(
    sizes: Sequence[Sized], compared: ComparedNetwork, trained: TrainedRun
) -> tuple[ProvenSize, ...]:
    """Every code of the file at each size, which counts in the exactness of all."""
    pixels = trained.pixels or (lambda images: images)
    return tuple(compared.at(one, [pixels(one.inputs[0]).numpy()]) for one in sizes)


def proven_by_logits(
    sizes: Sequence[Sized], integers: Classifier, file: Classifier
) -> tuple[ProvenSize, ...]:
    """How far apart the two are, where the target's codes cannot be compared with the integers'."""
    found = []
    for one in sizes:
        (images,) = one.inputs
        largest = float(np.abs(integers(images) - file(images)).max())
        found.append(ProvenSize(one.size, len(images), None, None, largest))
    return tuple(found)
