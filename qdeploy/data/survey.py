"""A look at every image file before training: which cannot be read, and how large images are.

What it found is kept with the run, so that a resumed run has the same images in the same places.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from qdeploy.data.decoding import IMAGENET_SIZE, worked
from qdeploy.datasets.folder import ImageFolder
from qdeploy.errors import QdeployError
from qdeploy.pictures.listing import first_of
from qdeploy.pictures.reading import read, size_of
from qdeploy.recipe import DataSection

AT_ONCE = 64  # files that a worker looks at before it answers

Look = tuple[int, "str | None"]  # the short side in pixels, and why the file cannot be read


@dataclass(frozen=True)
class Survey:
    """What was found.

    image_size  pixels of the square that images are resized to
    files       number of files, also of those that are left out
    listing     SHA-256 of their names and labels
    skipped     the files that are left out, by their paths below the data root, and why
    """

    image_size: int
    files: int
    listing: str
    skipped: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Survey:
        """Errors: ValueError, KeyError or TypeError for what to_json did not write."""
        return cls(**json.loads(text))

    def kept(self, images: ImageFolder, root: Path) -> ImageFolder:
        """The images without those that are left out. Errors: QdeployError if a class has none left."""
        left_out = {root / name for name in self.skipped}
        return images.chosen(n for n, path in enumerate(images.paths) if path not in left_out)


def look_at(
    splits: Sequence[ImageFolder], root: Path, section: DataSection
) -> tuple[Survey, list[str]]:
    """Looks at every file of the splits, the training images first; also what the log should say.

    Errors: QdeployError that lists the files which cannot be read, unless [data] skips them.
    """
    paths = [path for images in splits for path in images.paths]
    chunks = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    look = partial(_looked_at, whole=section.scan == "full")
    looks = [look for chunk in worked(chunks, look, section.workers) for look in chunk]
    bad = {path: why for path, (_, why) in zip(paths, looks, strict=True) if why is not None}
    if bad and section.on_bad_file == "error":
        raise QdeployError(
            f"{len(bad):,} of {len(paths):,} files cannot be read:\n{first_of(bad.values())}\n"
            'Mend or delete them, or let data.on_bad_file = "skip" leave them out'
        )
    sides = [side for side, why in looks[: len(splits[0].paths)] if why is None]
    size, reason = _image_size(sides, section)
    skipped = {path.relative_to(root).as_posix(): why for path, why in bad.items()}
    survey = Survey(size, len(paths), listing_of(splits, root), skipped)
    return survey, [*reason, *_left_out(bad, len(paths))]


def listing_of(splits: Sequence[ImageFolder], root: Path) -> str:
    """SHA-256 of the names and labels of all files; it is the same wherever the root lies."""
    digest = hashlib.sha256()
    for images in splits:
        for path, label in zip(images.paths, images.labels, strict=True):
            line = f"{path.relative_to(root).as_posix()}\0{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))  # names may be any bytes
    return digest.hexdigest()


def _looked_at(paths: Sequence[Path], whole: bool) -> list[Look]:
    found: list[Look] = []
    for path in paths:
        try:
            found.append((min(read(path).size if whole else size_of(path)), None))
        except QdeployError as error:
            found.append((0, str(error)))
    return found


def _image_size(sides: Sequence[int], section: DataSection) -> tuple[int, list[str]]:
    """The recipe's size, or one that most images have the pixels for, and why."""
    if section.image_size is not None:
        return section.image_size, []
    if not sides:
        return IMAGENET_SIZE, []  # an error follows: no image is left
    median = int(np.median(sides))
    bounds = {"": median, ", as ImageNet's": IMAGENET_SIZE}
    if isinstance(section.resize, int):
        bounds[", as data.resize"] = section.resize
    whose = min(bounds, key=bounds.__getitem__)
    return bounds[whose], [
        f"image_size is {bounds[whose]}{whose}: half of the {len(sides):,} training images have a short side "
        f"of {median} pixels or more (data.image_size sets another)"
    ]


def _left_out(bad: dict[Path, str], files: int) -> list[str]:
    if not bad:
        return []
    return [f"left out are {len(bad):,} of {files:,} files:\n{first_of(bad.values())}"]
