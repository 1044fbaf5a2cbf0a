"""ONNX Runtime: codes on integer kernels, weights packed."""

from __future__ import annotations

import onnx_ir as ir

from qdeploy.deploy import passes
from qdeploy.deploy.target import Target


def rewrite(model: ir.Model) -> None:
    for step in passes.BEFORE_PACKING:
        step(model)


TARGET = Target(rewrite=rewrite)
