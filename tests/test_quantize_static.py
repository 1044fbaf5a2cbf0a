"""Without training, each family's file is as near to float as quantize_static's, or nearer."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from families import FAMILIES, build, inputs

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from static_quantization import quantized_statically

import qdeploy
from qdeploy.benchmark.machine import saturates

BATCHES = [(3, 32), (4, 32)]  # seed, size


def outputs(path, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, dict(zip(names, (x.numpy() for x in images), strict=True)))
    return np.concatenate([part.reshape(len(part), -1) for part in found], axis=1)


def errors(name, folder):
    """Root mean square error of ours and of quantize_static's, against the float file."""
    network = build(name).eval()
    batches = [inputs(name, size, seed) for seed, size in BATCHES]
    model = qdeploy.export(network, folder / "float.onnx", inputs(name, 2))
    arrays = [[x.numpy() for x in batch] for batch in batches]
    few = {"reduce_range": saturates()}  # where the processor would add up 8 bits wrongly
    theirs = quantized_statically(model, folder / "static.onnx", arrays, **few)
    prepared = qdeploy.prepare(network, inputs(name, 2), "simqat", **few)
    qdeploy.calibrate(prepared, batches, "mse", correct_bias=True)
    ours = qdeploy.export(prepared, folder / "ours.onnx", inputs(name, 2))
    images = inputs(name, 64, 9)
    wanted = outputs(model, images)
    return [np.sqrt(np.square(outputs(path, images) - wanted).mean()) for path in (ours, theirs)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_as_near_to_float_or_nearer(name, tmp_path):
    """1.0 to 2.6 times as near; of three families the two differ by 2 % in a single draw.

    Of 7 bits both have steps twice as wide, and a draw says less.
    """
    ours, theirs = errors(name, tmp_path)
    assert ours <= (1.15 if saturates() else 1.05) * theirs
