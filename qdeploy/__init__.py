"""qdeploy: a PyTorch network at 1 to 8 bits, shipped as ONNX.

import qdeploy
prepared = qdeploy.prepare(network, images, "slb", weight_bits=1, act_bits=8)
...                                      # train `prepared` as you trained `network`
qdeploy.calibrate(prepared, batches)
qdeploy.export(prepared, "model.onnx", images)

What it offers stands in __init__.pyi and is loaded when first used: torch takes seconds to import, and
`qdeploy --help` needs none of it.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("qdeploy")
