"""A file in its target's own runtime, held against ONNX Runtime before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from qdeploy.benchmark.runtime import Array, Images, Session, open_session
from qdeploy.deploy.target import Target, write_for
from qdeploy.errors import QdeployError

RANDOM_BATCHES = 7
# Kernels that are both right differ at near-ties, and few bits amplify it: by up to 0.007 in networks
# of tests/ whose outputs are equal in both ways of ONNX Runtime. A rounding left out makes 0.23 at 1 bit.
FLOOR, TIMES = 0.05, 3


def check_in_runtime(model: onnx.ModelProto, target: Target, examples: Sequence[Tensor]) -> None:
    """Runs the example inputs, and random ones like them, in the target's own runtime, if it has one.

    What kernels explain is measured in ONNX Runtime: its integer kernels against its float kernels.

    Errors: QdeployError if the runtimes disagree by more than that, if the target's runtime is
    missing, or if it cannot read the file.
    """
    if target.load is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        name, run = target.load(write_for(target, model, path))
        integers, floats = (
            open_session(path, "cpu", as_written=floats) for floats in (False, True)
        )
        batches = list(_batches(integers, examples))
        expected = [integers.run_on(batch) for batch in batches]
        found = distance(expected, [run(*batch.values()) for batch in batches])
        kernels = distance(expected, [floats.run_on(batch) for batch in batches])
        allowed = FLOOR + TIMES * kernels
    if not found <= allowed:
        raise QdeployError(
            f"{name} computes other outputs than ONNX Runtime from this file: on the average they are "
            f"{found:.0%} of their spread apart, and kernels explain {allowed:.0%}. Nothing was "
            'written. Please report the network, and export with target="cpu" until then'
        )


def _batches(session: Session, examples: Sequence[Tensor]) -> Iterator[dict[str, Images]]:
    """The examples, and noise of their mean and deviation; random pixels where the file takes uint8."""
    names = [(one.name, one.type) for one in session.inference.get_inputs()]
    given = {name: x.detach().cpu().numpy() for (name, _), x in zip(names, examples, strict=True)}
    pixels = {name for name, type_ in names if type_ == "tensor(uint8)"}
    if not pixels:
        yield given
    random = np.random.default_rng(0)
    for _ in range(RANDOM_BATCHES):
        yield {
            name: random.integers(0, 256, x.shape, np.uint8) if name in pixels else _like(x, random)
            for name, x in given.items()
        }


def _like(x: Images, random: np.random.Generator) -> Images:
    """Noise in place of floats; of other types the same values, which may be indices."""
    if not np.issubdtype(x.dtype, np.floating):
        return x
    return random.normal(x.mean(), x.std(), x.shape).astype(x.dtype)


def distance(expected: list[list[Array]], found: list[list[Array]]) -> float:
    """How far apart the rows of the outputs are, as a share of the outputs' deviation: 0 to 1.

    The mean over all rows, of the output where it is largest.
    """
    return max(map(_output_distance, _joined(expected), _joined(found)))


def _joined(batches: list[list[Array]]) -> list[Array]:
    """Each output, of all batches: [rows, values]."""
    outputs = zip(*batches, strict=True)
    return [np.concatenate([x.reshape(max(len(x), 1), -1) for x in each]) for each in outputs]


def _output_distance(expected: Array, found: Array) -> float:
    apart = np.sqrt(np.square(expected - found, dtype=np.float64).mean(1))
    return float(np.minimum(1, apart / (expected.std() or 1)).mean())
