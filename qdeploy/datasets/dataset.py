"""What a data set is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedFile:
    """A file to download, and the name that it (or its folder) has once unpacked."""

    name: str
    unpacked: str
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """One data set.

    read         gives the training and the test set, or the training, validation and test set, as
                 `LabelledImages` or, with `image_files`, as `ImageFolder`; None for what is not there.
                 Its arguments are the paths of `files`, in their order, or the data root if nothing is
                 to be found or downloaded
    mean, std    per channel, of the training pixels scaled to 0..1
    title        what reports call it; without one, the name of the data root
    classes      their names, in the order of the labels; a folder names its own
    image_files  whether images are decoded from files as they are needed, and augmented there,
                 instead of staying on the device as arrays

    Where its files are published:

    files        what is found or downloaded
    base_url     what a file's name is appended to
    folders      where the files may lie below the data root; downloads go to the first
    """

    read: Callable[..., tuple[Any, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str = ""
    classes: tuple[str, ...] = ()
    image_files: bool = False
    files: tuple[PublishedFile, ...] = ()
    base_url: str = ""
    folders: tuple[str, ...] = (".",)
