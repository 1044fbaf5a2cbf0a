"""Quantization methods: one paper a file, each ending in `METHOD = Method(...)`.

The file's name is the method's name on the command line. Other packages add methods through
the entry-point group `qdeploy.methods`, each entry naming a `Method`.
"""

from qdeploy.methods.method import ActivationSite, Method, Options, WeightSite
from qdeploy.methods.registry import available, find

__all__ = ["ActivationSite", "Method", "Options", "WeightSite", "available", "find"]
