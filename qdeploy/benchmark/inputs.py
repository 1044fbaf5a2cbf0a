"""What a file is timed on: random values in the shapes that it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]

OPEN_SIZE = 224  # of axes that the file leaves open, but for the batch

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
    inference: ort.InferenceSession, batch: int, size: int = OPEN_SIZE
) -> dict[str, Array]:
    """Standard normal floats, bytes, and zeros and ones for other types, for each input.

    The batch is what is called so, as in files of qdeploy, else the first axis of the first input. Other
    open axes have `size` entries.

    Errors: QdeployError for a type that is none of TYPES, or a batch that the file does not take.
    """
    inputs = inference.get_inputs()
    named = {axis for one in inputs for axis in one.shape if isinstance(axis, str)}
    first = inputs[0].shape[:1] if inputs else []
    name = "batch" if "batch" in named else next(iter(first), None)
    if isinstance(name, int) and name != batch:
        raise QdeployError(
            f"the file takes batches of {name} alone, not of {batch}; give that batch size, or export "
            "the network again with an open batch"
        )
    random = np.random.default_rng(0)
    found = {}
    for one in inputs:
        if one.type not in TYPES:
            raise QdeployError(f"input {one.name} is {one.type}; allowed: {', '.join(TYPES)}")
        shape = [_length(axis, place, name, batch, size) for place, axis in enumerate(one.shape)]
        found[one.name] = _values(TYPES[one.type], shape, random)
    return found


def _length(
    axis: int | str | None, place: int, name: int | str | None, batch: int, size: int
) -> int:
    if isinstance(axis, int):
        return axis
    is_batch = axis == name if axis is not None else place == 0
    return batch if is_batch else size


def _values(kind: np.dtype[Any], shape: list[int], random: np.random.Generator) -> Array:
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    return random.integers(0, 256 if kind == np.uint8 else 2, shape).astype(kind)
