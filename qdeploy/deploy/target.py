"""What a target is, and how one is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdeploy.benchmark.runtime import Array
from qdeploy.deploy.edits import Pass
from qdeploy.deploy.seal import KEY
from qdeploy.deploy.targets import available
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.onnx_file import write
from qdeploy.record import Record

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class OwnFormat:
    """A runtime's own kind of file, which is made of the ONNX file and lies beside it.

    suffix      of its name
    translated  the bytes of that file, of an unpacked ONNX file's model, with its metadata
    """

    suffix: str
    translated: Callable[[onnx.ModelProto], bytes]


@dataclass(frozen=True)
class Target:
    """A runtime that files are made for; it is called as its module in targets/.

    rewrite        of the graph, in place, in front of packing
    packs          whether the runtime folds packed weights
    in_rows        whether a Linear takes sequences as rows of one matrix, for QGemm. ONNX Runtime
                   fails to load such a product between signed codes, OpenVINO mixes up its axes
    as_written     whether ONNX Runtime proves the file without its own fusions, which are not the target's
    provider       ONNX Runtime's provider for this runtime, as --provider calls it: proves the file
                   wherever it works
    load           opens the file that `write_for` returned in another runtime, to run beside ONNX
                   Runtime: the runtime's name with its version, and a function from the inputs, as the
                   ONNX file has them, to the list of the outputs
    own_format     the kind of file that the runtime reads, if that is not ONNX
    coarser_steps  how many activations of a converted network `rewrite` gives a larger step, and of
                   how many; None where it never does
    advice         what the reader of a report should know of this runtime, in sentences
    accelerator    how Triton's ONNX Runtime is told to hand the graph on: an entry of
                   execution_accelerators in its model_config.proto
    """

    rewrite: Pass
    packs: bool = True
    in_rows: bool = True
    as_written: bool = False
    provider: str | None = None
    load: Callable[[Path], tuple[str, Callable[..., list[Array]]]] | None = None
    own_format: OwnFormat | None = None
    coarser_steps: Callable[[nn.Module], tuple[int, int]] | None = None
    advice: Callable[[Record], Iterable[str]] = lambda record: ()
    accelerator: str | None = None

    @property
    def is_onnx_runtime(self) -> bool:
        """Whether ONNX Runtime itself is what the file is for, so that its latency is the target's."""
        return self.provider is None and self.load is None


def onnx_path(target: Target, path: Path) -> Path:
    """Where the ONNX file goes, if `path` may be that of the runtime's own file.

    Errors: QdeployError if it is that of another runtime.
    """
    if path.suffix not in _own_suffixes():
        return path
    if target.own_format is None or path.suffix != target.own_format.suffix:
        raise QdeployError(
            f"{path} is the name of another target's file, and this target writes ONNX; call it "
            f"{path.with_suffix('.onnx').name}, or choose the target that writes {path.suffix}"
        )
    return path.with_suffix(".onnx")


def runtime_path(target: Target, path: Path) -> Path:
    """The file that the runtime reads: the ONNX file at `path`, or the runtime's own beside it."""
    return path if target.own_format is None else path.with_suffix(target.own_format.suffix)


def _own_suffixes() -> set[str]:
    formats = (find_target(name).own_format for name in available())
    return {one.suffix for one in formats if one is not None}


def write_for(target: Target, model: onnx.ModelProto, path: Path) -> Path:
    """Writes the ONNX file, and a runtime's own beside it; returns the one that the runtime reads.

    path: of the ONNX file. The runtime's own is made first, since that may be refused. One that an
    earlier export left there for another target would be taken for this model's, and goes.
    """
    read = runtime_path(target, path)
    if target.own_format is not None:
        with atomic_write(read) as file:
            file.write(target.own_format.translated(model))
    write(model, path)
    for left in map(path.with_suffix, _own_suffixes()):
        if left != read and left.is_file() and KEY.encode() in left.read_bytes():
            left.unlink()
    return read


def find_target(name: str) -> Target:
    """The target in targets/<name>.py. Errors: QdeployError with all names if there is none."""
    if name not in available():
        raise QdeployError(f"there is no target {name!r}; choose one of {', '.join(available())}")
    target: Target = importlib.import_module(f"qdeploy.deploy.targets.{name}").TARGET
    return target
