"""qdeploy: a PyTorch network at 1 to 8 bits, shipped as ONNX.

import qdeploy
prepared = qdeploy.prepare(network, images, "slb", weight_bits=1, act_bits=8)
...                                      # train `prepared` as you trained `network`
qdeploy.calibrate(prepared, batches)
qdeploy.export(prepared, "model.onnx", images)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    from qdeploy.deploy.complexity import complexity
    from qdeploy.deploy.convert import convert
    from qdeploy.deploy.export import export
    from qdeploy.networks import load_network
    from qdeploy.preparation.calibrate import calibrate
    from qdeploy.preparation.prepare import prepare

__version__ = version("qdeploy")
__all__ = [
    "QdeployError", "calibrate", "complexity", "convert", "export", "load_network", "prepare",
]  # fmt: skip

# Loaded when first used: torch takes seconds to import, and `qdeploy --help` needs none of it.
_HOMES = {
    "calibrate": "qdeploy.preparation.calibrate",
    "complexity": "qdeploy.deploy.complexity",
    "convert": "qdeploy.deploy.convert",
    "export": "qdeploy.deploy.export",
    "load_network": "qdeploy.networks",
    "prepare": "qdeploy.preparation.prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qdeploy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
