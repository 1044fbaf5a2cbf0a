"""ONNX Runtime: codes on integer kernels, weights packed."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from qdeploy.deploy import passes
from qdeploy.deploy.open_lengths import count_by_size
from qdeploy.deploy.target import Target
from qdeploy.record import Record


def rewrite(model: ir.Model) -> None:
    count_by_size(model)
    for step in passes.BEFORE_PACKING:
        step(model)


def advice(record: Record) -> Iterator[str]:
    """What another runtime that reads the file as well makes of its Adds."""
    placed = record.placement
    kinds = (placed and placed.operators) or {}
    if any(kind.rpartition("::")[2] == "QLinearAdd" for kind in kinds):
        yield (
            "Run in OpenVINO, this file would lose a rounding in front of each Add, which few bits "
            "do not bear: export with --target openvino, or compile the file of a network of "
            'convolutions there with LP_TRANSFORMS_MODE = "NO", which is slower.'
        )


TARGET = Target(rewrite=rewrite, advice=advice)
