"""A folder of images, with a sub-folder for each class.

root/train/<class>/*.jpg    root/val/<class>/*.jpg    root/test/<class>/*.jpg

`val` may be called valid or validation, and either of val and test may be missing. Both may, with
data.val_share, and then root/<class>/*.jpg is as good.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

from typing_extensions import Self

from qdeploy.datasets.dataset import Dataset
from qdeploy.errors import QdeployError
from qdeploy.pictures.listing import SUFFIXES, images_below

VALIDATION = ("val", "valid", "validation")


class ImageFolder:
    """The files of one split: `paths`, and `labels` that index `classes` (folders by name)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes = tuple(sorted(path.name for path in folder.iterdir() if _is_class(path)))
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes):
            images = _images_of_class(folder / name)
            self.paths += images
            self.labels += [label] * len(images)

    def chosen(self, numbers: Iterable[int]) -> Self:
        """The same classes with these of the files. Errors: QdeployError if a class has none left."""
        other = copy.copy(self)
        pairs = [(self.paths[number], self.labels[number]) for number in numbers]
        other.paths, other.labels = [path for path, _ in pairs], [label for _, label in pairs]
        for label in sorted(set(self.labels) - set(other.labels)):
            raise QdeployError(
                f"no image of {self.folder / self.classes[label]} is left to take; put more images there, "
                "or delete the folder"
            )
        return other


def open_splits(root: Path) -> tuple[ImageFolder, ImageFolder | None, ImageFolder | None]:
    """The images below `root` for training, validation and testing; None for what is not there.

    A test folder without sub-folders, as ImageNet's, has no labels, and is none where val is one.
    Raises QdeployError if a split or a class has no images, or if their classes differ.
    """
    val, test = _split(root, *VALIDATION), _split(root, "test")
    train = ImageFolder(_training(root))
    if val is not None and test is not None and not test.classes:
        test = None
    for other in (val, test):
        if other is not None and other.classes != train.classes:
            differing = sorted(set(train.classes) ^ set(other.classes))
            raise QdeployError(
                f"{train.folder} and {other.folder} must have the same classes; only one of them"
                f" has {', '.join(differing)}"
            )
    if len(train.paths) < 2:
        raise QdeployError(
            f"{train.folder} must hold two images or more, in a sub-folder for each class;"
            f" it holds {len(train.paths)}"
        )
    return train, val, test


def _split(root: Path, *names: str) -> ImageFolder | None:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise QdeployError(
            f"{' and '.join(map(str, found))} would both be for validation; leave one of them"
        )
    return ImageFolder(found[0]) if found else None


def _training(root: Path) -> Path:
    """root/train, or the root itself where its sub-folders are the classes."""
    if (root / "train").is_dir():
        return root / "train"
    names = {path.name for path in root.iterdir() if _is_class(path) and images_below(path)}
    if names and not names & {*VALIDATION, "test"}:
        return root
    raise QdeployError(
        f"{root} has no folder train; expected are train/<class>/ and val/<class>/ with images, or"
        " <class>/ alone with data.val_share. Name the folder above them with --data-root."
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images_of_class(folder: Path) -> list[Path]:
    images = images_below(folder)
    if not images:
        raise QdeployError(f"{folder} holds no image; allowed are {', '.join(SUFFIXES)}")
    return images


DATASET = Dataset(
    mean=(0.485, 0.456, 0.406),  # ImageNet's, as the crops are
    std=(0.229, 0.224, 0.225),
    read=open_splits,
    image_files=True,
)
