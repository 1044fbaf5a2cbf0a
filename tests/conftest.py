"""Puts tests/ on the import path for networks.py, and spares the suite two costs of torch."""

import functools

import torch
from torch.onnx._internal.exporter import _registration

# Two workers of one thread each are faster here than one of two.
torch.set_num_threads(1)

# Each export reads the sources of all 500 operators of torchlib anew, a third of its time.
_registration.onnxscript_apis.get_torchlib_ops = functools.cache(
    _registration.onnxscript_apis.get_torchlib_ops
)
