"""The image files of a folder, by the ends of their names, and what is said of those that are bad."""

from collections.abc import Collection
from pathlib import Path

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
LISTED = 10


def images_below(folder: Path) -> list[Path]:
    """Whatever has the name of an image, at any depth, in order; folders and hidden files do not count."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def first_of(problems: Collection[str]) -> str:
    """The first ten, a line each, and how many more there are."""
    lines = list(problems)[:LISTED]
    if len(problems) > LISTED:
        lines.append(f"and {len(problems) - LISTED:,} more")
    return "\n".join(lines)
