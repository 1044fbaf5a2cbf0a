"""ONNX Runtime's own quantizer, which ours is compared with, called as its manual says."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

WEIGHTS = {8: quantization.QuantType.QInt8, 4: quantization.QuantType.QInt4}
Arrays = Sequence[np.ndarray[Any, Any]]


class Reader(quantization.CalibrationDataReader):
    """Batches of calibration data, an array for each input of the model."""

    def __init__(self, names: Sequence[str], batches: Iterable[Arrays]) -> None:
        self.feeds = (dict(zip(names, batch, strict=True)) for batch in batches)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self.feeds, None)


def quantized_statically(
    model: Path, output: Path, batches: Iterable[Arrays], bits: int = 8, reduce_range: bool = False
) -> Path:
    """`output`: the float file `model` with what suits the CPU provider.

    QDQ, uint8 activations with min-max ranges, weights of 8 or 4 bits per channel; of 7 in place
    of 8 with reduce_range.
    """
    names = [given.name for given in onnx.load(model, load_external_data=False).graph.input]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to do what is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready = Path(folder) / "ready.onnx"
            quant_pre_process(model, ready, skip_symbolic_shape=True)
            quantization.quantize_static(
                *(ready, output, Reader(names, batches)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=WEIGHTS[bits],
                reduce_range=reduce_range,
            )
    finally:
        logging.disable(level)
    return output
