"""Finds methods: the modules of this package and the entry points of others."""

from qdeploy.extensions import Extensions
from qdeploy.methods.method import Method

_HELPERS = frozenset({"method", "registry"})
_METHODS = Extensions("method", Method, "qdeploy.methods", "METHOD", _HELPERS)
available, find = _METHODS.names, _METHODS.find
