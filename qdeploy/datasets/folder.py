"""A folder of images, with a sub-folder for each class.

root/train/<class>/*.jpg    root/val/<class>/*.jpg  (or root/test)
"""

from pathlib import Path

from qdeploy.datasets.dataset import Dataset
from qdeploy.errors import QdeployError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder:
    """The files of one split: `paths`, and `labels` that index `classes` (folders by name)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes = tuple(sorted(path.name for path in folder.iterdir() if _is_class(path)))
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes):
            images = _images_below(folder / name)
            self.paths += images
            self.labels += [label] * len(images)


def open_splits(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """The training and the test split below `root`.

    Raises QdeployError if a split or a class has no images, or if their classes differ.
    """
    train, test = ImageFolder(_existing(root, "train")), ImageFolder(_existing(root, "val", "test"))
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise QdeployError(
            f"{train.folder} and {test.folder} must have the same classes; only one of them"
            f" has {', '.join(differing)}"
        )
    if len(train.paths) < 2:
        raise QdeployError(
            f"{train.folder} must hold two images or more, in a sub-folder for each class;"
            f" it holds {len(train.paths)}"
        )
    return train, test


def _existing(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise QdeployError(
        f"{root} has no folder {' or '.join(names)}; expected are train/<class>/ and val/<class>/"
        " with images. Name the folder above them with --data-root."
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images_below(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        raise QdeployError(f"{folder} holds no image; allowed are {', '.join(SUFFIXES)}")
    return images


DATASET = Dataset(
    mean=(0.485, 0.456, 0.406),  # ImageNet's, as the crops are
    std=(0.229, 0.224, 0.225),
    read=open_splits,
    image_files=True,
)
