"""The runtimes that a file is made for, and what each needs done to the graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qdeploy.deploy import passes
from qdeploy.deploy.targets.openvino import with_float_gates
from qdeploy.deploy.targets.tensorrt import with_symmetric_codes
from qdeploy.errors import QdeployError


@dataclass(frozen=True)
class Target:
    """What the graph of a runtime is like.

    rewrite  in place, in front of packing
    packs    whether the runtime folds packed weights
    in_rows  whether a Linear takes sequences as rows of one matrix, for QGemm. ONNX Runtime fails to
             load such a product between signed codes
    """

    rewrite: passes.Pass
    packs: bool
    in_rows: bool = True


def for_onnx_runtime(model: ir.Model) -> None:
    for rewrite in passes.BEFORE_PACKING:
        rewrite(model)


def for_openvino(model: ir.Model) -> None:
    with_float_gates(model)
    for_onnx_runtime(model)


def for_tensorrt(model: ir.Model) -> None:
    for rewrite in (with_symmetric_codes, passes.guard_float_layers, passes.share_initialisers):
        rewrite(model)


# TensorRT reads codes of 4 and 8 bits only.
TARGETS = {
    "cpu": Target(for_onnx_runtime, packs=True),
    "openvino": Target(for_openvino, packs=True),
    "tensorrt": Target(for_tensorrt, packs=False, in_rows=False),
}


def find_target(name: str) -> Target:
    """Errors: QdeployError for a name that is not in TARGETS."""
    if name not in TARGETS:
        raise QdeployError(f"there is no target {name!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
