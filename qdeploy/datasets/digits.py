"""Handwritten digits that come with scikit-learn: 1,797 scans of 8x8, nothing to download."""

import numpy as np

from qdeploy.datasets.dataset import Dataset
from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.errors import QdeployError

_GREYS = 16  # pixels count the set points of a 4x4 cell: 0..16
_SIZE = 28
_HELD_OUT = 0.2
_SPLIT_SEED = 0


def read_digits() -> tuple[LabelledImages, LabelledImages]:
    """1,437 digits for training and 360 held out, stratified by class, always the same.

    Images are enlarged to 28x28, MNIST's size, by bilinear interpolation with
    align_corners=False, and their greys are scaled from 0..16 to 0..255.

    Errors: QdeployError if scikit-learn is not installed.
    """
    try:  # scikit-learn takes a second to import and 200 MB of disk, and only this data set needs it
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise QdeployError(
            f"the digits come with scikit-learn, which cannot be imported ({error}): "
            "pip install scikit-learn, or name another data set; `qdeploy models` lists recipes"
        ) from error

    scans, labels = load_digits(return_X_y=True)
    train_scans, test_scans, train_labels, test_labels = train_test_split(
        scans, labels, test_size=_HELD_OUT, stratify=labels, random_state=_SPLIT_SEED
    )
    return _enlarged(train_scans, train_labels), _enlarged(test_scans, test_labels)


def _enlarged(scans: np.ndarray, labels: np.ndarray) -> LabelledImages:
    """scans: float [N, 64] of 0..16."""
    import torch
    from torch.nn.functional import interpolate

    small = torch.from_numpy(scans * (255 / _GREYS)).reshape(-1, 1, 8, 8)
    large = interpolate(small, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
    return LabelledImages(large.round().to(torch.uint8).numpy(), labels.astype(np.int64))


DATASET = Dataset(
    title="scikit-learn digits",
    classes=tuple("0123456789"),
    mean=(0.3054,),
    std=(0.3247,),
    read=lambda root: read_digits(),
)
