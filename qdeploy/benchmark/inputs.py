"""What a file is timed on: random values in the shapes that it declares, or is given where they are open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]

BATCH = "batch"
Shapes = Mapping[str, Sequence[int]]

TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}


def random_inputs(
    inference: ort.InferenceSession, batch: int, shapes: Shapes | None = None
) -> dict[str, Array]:
    """Standard normal floats, bytes, and zeros and ones for other types, for each input.

    The batch is what is called so, as in files of qdeploy, else the first axis of the first input.

    shapes   {input: its shape}, for what the file leaves open. Axes of one name have one size, so that
             of several inputs one may do; `batch` replaces the batch's

    Errors: QdeployError for a type that is none of TYPES, for a batch or a shape that the file does not
    take, and for an open size that is not given.
    """
    inputs = inference.get_inputs()
    fixed = _fixed_batch(inputs)
    if fixed not in (None, batch):
        raise QdeployError(
            f"the file takes batches of {fixed} alone, not of {batch}; give that batch size, or export "
            "the network again with an open batch"
        )
    sizes = {**_sizes(inputs, shapes or {}), BATCH: batch}
    random = np.random.default_rng(0)
    found = {}
    for one in inputs:
        if one.type not in TYPES:
            raise QdeployError(f"input {one.name} is {one.type}; allowed: {', '.join(TYPES)}")
        found[one.name] = _values(TYPES[one.type], _shape(one, inputs, sizes), random)
    return found


def shapes_of(inference: ort.InferenceSession, shapes: Shapes, size: int) -> Shapes:
    """That of each input, with `size` for every length that is open and that `shapes` do not give."""
    inputs = inference.get_inputs()
    lengths = {BATCH: 1, **_sizes(inputs, shapes)}
    return {
        one.name: [
            axis if isinstance(axis, int) else lengths.get(axis, size)
            for axis in _axes(one, inputs)
        ]
        for one in inputs
    }


def batch_of(inference: ort.InferenceSession, shapes: Shapes) -> int:
    """The batch of the shapes that are given for a file, or that it has; 1 where neither says one."""
    inputs = inference.get_inputs()
    return _sizes(inputs, shapes).get(BATCH, _fixed_batch(inputs) or 1)


def _fixed_batch(inputs: Sequence[ort.NodeArg]) -> int | None:
    """The only batch that the file takes; None where it is open."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    return first if isinstance(first, int) and not _has_batch(inputs) else None


def _has_batch(inputs: Sequence[ort.NodeArg]) -> bool:
    return any(BATCH in one.shape for one in inputs)


def _axes(one: ort.NodeArg, inputs: Sequence[ort.NodeArg]) -> list[int | str]:
    """Each axis of an input: its size, or what an open size is called; "batch" for the batch."""
    named, first = _has_batch(inputs), next(iter(inputs[0].shape), None)
    axes: list[int | str] = []
    for place, axis in enumerate(one.shape):
        if isinstance(axis, int):
            axes.append(axis)
        elif not named and (axis == first if axis else place == 0):
            axes.append(BATCH)
        else:
            axes.append(axis or f"axis {place} of {one.name}")
    return axes


def _sizes(inputs: Sequence[ort.NodeArg], shapes: Shapes) -> dict[str, int]:
    """The open sizes that shapes give. Errors: QdeployError where these do not fit a file, or one another."""
    sizes: dict[str, int] = {}
    for one in inputs:
        given = shapes.get(one.name)
        if given is None:
            continue
        known = [
            axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            for axis, size in zip(_axes(one, inputs), given, strict=False)
        ]
        if len(given) != len(one.shape) or known != list(given):
            raise QdeployError(
                f"the shape {_words(given)} is given for {one.name}, which takes {_words(one.shape)}: give "
                "what is a number there as it is, and axes of one name one size"
            )
    return sizes


def _shape(one: ort.NodeArg, inputs: Sequence[ort.NodeArg], sizes: Mapping[str, int]) -> list[int]:
    axes = _axes(one, inputs)
    if missing := [axis for axis in axes if not isinstance(axis, int) and axis not in sizes]:
        example = "x".join(map(_example, axes))
        raise QdeployError(
            f"input {one.name} takes {_words(one.shape)} and leaves {' and '.join(map(str, missing))} open: "
            f"give the shape to measure, as in --shape {one.name}={example}"
        )
    return [axis if isinstance(axis, int) else sizes[axis] for axis in axes]


def _words(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if axis is None else str(axis) for axis in shape)


def _example(axis: int | str) -> str:
    """A number for an axis in a shape that a message shows."""
    return str(axis) if isinstance(axis, int) else "1" if axis == BATCH else "224"


def _values(kind: np.dtype[Any], shape: list[int], random: np.random.Generator) -> Array:
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    return random.integers(0, 256 if kind == np.uint8 else 2, shape).astype(kind)
