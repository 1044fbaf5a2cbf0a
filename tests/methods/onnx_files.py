"""The file of a prepared network, the operators ONNX Runtime makes of it, and what it computes."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from networks import images

import qdeploy


@dataclass(frozen=True)
class OnnxFile:
    proto: onnx.ModelProto
    operators: Counter
    session: onnxruntime.InferenceSession

    def run(self, x):
        return self.session.run(None, {"input": x.numpy()})[0]


def calibrated(network, method, weight_bits, act_bits, **options):
    """A prepared network in evaluation mode, its ranges set on three batches."""
    prepared = qdeploy.prepare(network, images(2), method, weight_bits, act_bits, **options)
    qdeploy.calibrate(prepared, images(48, seed=7).split(16), batch_norm=True)
    return prepared.eval()


def exported(prepared, folder):
    path = qdeploy.export(prepared, folder / "model.onnx", images(2))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(folder / "optimized.onnx")
    return OnnxFile(onnx.load(path), Counter(n.op_type for n in optimized.graph.node), session)


def assert_the_file_predicts_what_evaluation_does(file, prepared, x, tolerance):
    """Same classes, and logits within `tolerance` of how far the images' logits lie apart."""
    with torch.no_grad():
        trained = prepared(x).numpy()
    found = file.run(x)
    assert np.abs(found - trained).max() < tolerance * np.abs(trained - trained.mean(0)).max()
    assert (found.argmax(1) == trained.argmax(1)).mean() >= 0.98
