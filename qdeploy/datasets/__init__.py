"""The data sets: one a file, each ending in `DATASET = Dataset(...)`. Importing them imports no torch.

The file's name, its underscores written as dashes, is the name in a recipe. Other packages add
data sets through the entry-point group `qdeploy.datasets`, each entry naming a `Dataset`.
"""

from qdeploy.datasets.dataset import Dataset, PublishedFile
from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.extensions import Extensions

__all__ = ["Dataset", "LabelledImages", "PublishedFile", "available", "find"]

_HELPERS = frozenset({"dataset", "downloads", "idx", "labelled_images"})
_DATASETS = Extensions("data set", Dataset, "qdeploy.datasets", "DATASET", _HELPERS, joint="-")
available, find = _DATASETS.names, _DATASETS.find
