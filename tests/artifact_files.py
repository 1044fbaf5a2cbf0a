"""Files of qdeploy, made once, and small ones as other tools write them."""

import functools
import tempfile
from pathlib import Path

import networks
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import qdeploy


@functools.cache
def model():
    """One Conv and two Linear layers of 1 bit, calibrated and exported, as bytes."""
    x = networks.images(48, seed=7)
    prepared = qdeploy.prepare(networks.build("plain"), x[:2], "slb", 1, 8)
    qdeploy.calibrate(prepared, x.split(16))
    return exported_bytes(prepared.eval())


def exported_bytes(prepared, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        return qdeploy.export(prepared, path, networks.images(2), **options).read_bytes()


def logits(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(images)})[0]


def by_hand(nodes, weights, elem_type=onnx.TensorProto.FLOAT, shape=("n", 3, 8, 8), domains=("",)):
    """A model from x to y with the weights {name: array}, as other tools write them."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid(domain, 21 if not domain else 1) for domain in domains]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=10, producer_name="another tool"
    )
