"""Calibrated and exported networks, each made once, and ONNX Runtime to run them."""

import functools
from collections import Counter
from dataclasses import dataclass

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import fx

import qdeploy
from qdeploy.deploy.export import finished, to_onnx
from qdeploy.preparation.prepared import PreparedNetwork

# name -> method, weight bits, activation bits, options
SETTINGS = {
    "simqat w8a8": ("simqat", 8, 8, {}),
    "slb w1a8": ("slb", 1, 8, {}),
    "simqat w3a4": ("simqat", 3, 4, {"weight_symmetric": False, "fold": "two-conv"}),
    "simqat w5a6": ("simqat", 5, 6, {"weight_narrow_range": True, "act_symmetric": True}),
    "slb w2a8": ("slb", 2, 8, {"linear": True}),
    "slb w4a8": ("slb", 4, 8, {}),
}


# What has to be installed for the targets whose files run in a runtime of their own.
RUNTIMES = {"litert": "ai_edge_litert", "openvino": "openvino"}


def skip_without_runtime(target):
    if target in RUNTIMES:
        pytest.importorskip(RUNTIMES[target])


def calibrated(network, settings="simqat w8a8", layers=None, first_last_float=False):
    """A prepared network in evaluation mode, its ranges set on three batches."""
    method, weight_bits, act_bits, options = SETTINGS[settings]
    return calibrated_by(
        network, method, weight_bits, act_bits, layers=layers,
        first_last_float=first_last_float, **options,
    )  # fmt: skip


def calibrated_by(network, *settings, **options):
    """`calibrated`, with the settings of `prepare`."""
    images = networks.images(48, seed=7)
    prepared = qdeploy.prepare(network, images[:2], *settings, **options)
    statistics = {
        name: value.clone() for name, value in prepared.state_dict().items() if "running_" in name
    }
    qdeploy.calibrate(prepared, images.split(16), batch_norm=True)
    prepared.load_state_dict(statistics, strict=False)  # keeps the awkward ones
    return prepared.eval()


@dataclass(frozen=True)
class Exported:
    prepared: PreparedNetwork
    converted: fx.GraphModule
    packed: onnx.ModelProto
    int8: onnx.ModelProto


def export(prepared) -> Exported:
    converted = qdeploy.convert(prepared)
    graph = to_onnx(qdeploy.convert(prepared), networks.images(2))
    return Exported(prepared, converted, finished(graph, True, {}), finished(graph, False, {}))


@functools.cache
def exported(name, settings) -> Exported:
    return export(calibrated(networks.build(name), settings))


def session(proto, optimized=None, plain=False, settings=None):
    """settings: {key of ONNX Runtime's session configuration: value}"""
    options = onnxruntime.SessionOptions()
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(proto, images, **options):
    return session(proto, **options).run(None, {"input": np.asarray(images)})[0]


def optimized(proto, folder):
    """The graph that ONNX Runtime makes of the network."""
    path = folder / "optimized.onnx"
    session(proto, path)
    return onnx.load(path)


def operators(proto):
    return Counter(node.op_type for node in proto.graph.node)


@torch.no_grad()
def outputs(network, images):
    return network(images).numpy()


def spread(values):
    """How far the outputs of different images lie apart."""
    return np.abs(values - values.mean(0)).max()
