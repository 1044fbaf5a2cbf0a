"""Puts tests/ on the import path for networks.py, and spares the suite two costs of torch and one fault.

Tests that hypothesis makes have no deadline: beside other work the same test takes three times as long.
"""

import functools
import os

import hypothesis
import torch
from torch.onnx._internal.exporter import _registration

hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Two workers of one thread each are faster here than one of two.
torch.set_num_threads(1)

# With AVX2 and no more, oneDNN's gradients of convolutions of odd channels write beyond their memory.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

# Each export reads the sources of all 500 operators of torchlib anew, a third of its time.
_registration.onnxscript_apis.get_torchlib_ops = functools.cache(
    _registration.onnxscript_apis.get_torchlib_ops
)
