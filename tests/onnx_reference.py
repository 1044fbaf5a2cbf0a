"""onnx's own evaluator, which knows nothing of qdeploy and of ONNX Runtime."""

import onnx
from onnx.reference import ReferenceEvaluator


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """For a file of any opset. The evaluator has DequantizeLinear from 19 on, so older ones are raised."""
    newest = onnx.ModelProto()
    newest.CopyFrom(model)
    opset = next(entry for entry in newest.opset_import if not entry.domain)
    opset.version = max(opset.version, 21)
    return ReferenceEvaluator(newest)
