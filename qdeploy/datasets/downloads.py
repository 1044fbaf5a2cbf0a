"""Finds the files of a data set below the data root, or downloads them to it."""

from pathlib import Path

from qdeploy.datasets.dataset import Dataset, PublishedFile
from qdeploy.errors import QdeployError


def find_files(dataset: Dataset, root: Path, download: bool) -> list[Path]:
    """The paths of the data set's files, in the order of `dataset.files`, packed or unpacked.

    All come from one folder, so that two data sets with the same file names do not mix. Raises
    QdeployError if no folder has them all and they may not be downloaded.
    """
    for folder in dataset.folders:
        paths = [_path_of(file, root / folder) for file in dataset.files]
        found = [path for path in paths if path is not None]
        if len(found) == len(paths):
            return found
    if download:
        return [_download(dataset, file, root / dataset.folders[0]) for file in dataset.files]
    raise QdeployError(_missing(dataset, root))


def _path_of(file: PublishedFile, folder: Path) -> Path | None:
    candidates = (folder / file.unpacked, folder / file.name)
    return next((path for path in candidates if path.exists()), None)


def _download(dataset: Dataset, file: PublishedFile, folder: Path) -> Path:
    """Downloads one file, which gets its name only once its SHA-256 is right."""
    import pooch

    url = dataset.base_url + file.name
    try:
        return Path(pooch.retrieve(url, f"sha256:{file.sha256}", file.name, folder))
    except (OSError, ValueError) as error:  # no connection or disk space; another SHA-256
        raise QdeployError(
            f"{url} could not be downloaded to {folder}: {error}. Try again, or put"
            f" {file.name} there yourself."
        ) from error


def _missing(dataset: Dataset, root: Path) -> str:
    names = "\n".join(f"  {file.name} or {file.unpacked}" for file in dataset.files)
    folders = ", ".join(str(root / folder) for folder in dataset.folders)
    return (
        f"the files of {dataset.title} are missing:\n{names}\n"
        f"Put them all into one of {folders}, name another folder with --data-root, or let"
        f" --download fetch them from {dataset.base_url}"
    )
