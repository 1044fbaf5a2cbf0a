"""Where the files of a data set are: found below the data root, or downloaded to it."""

from pathlib import Path

from qdeploy.data.datasets import DatasetSpec, PublishedFile
from qdeploy.errors import QdeployError


def find_files(spec: DatasetSpec, root: Path, download: bool) -> list[Path]:
    """The paths of the data set's files, in the order of `spec.files`, packed or unpacked.

    All come from one folder, so that two data sets with the same file names do not mix. Raises
    QdeployError if no folder has them all and they may not be downloaded.
    """
    for folder in spec.folders:
        paths = [_path_of(file, root / folder) for file in spec.files]
        found = [path for path in paths if path is not None]
        if len(found) == len(paths):
            return found
    if download:
        return [_download(spec, file, root / spec.folders[0]) for file in spec.files]
    raise QdeployError(_missing(spec, root))


def _path_of(file: PublishedFile, folder: Path) -> Path | None:
    candidates = (folder / file.unpacked, folder / file.name)
    return next((path for path in candidates if path.exists()), None)


def _download(spec: DatasetSpec, file: PublishedFile, folder: Path) -> Path:
    """Fetches one file; it takes its name only when its SHA-256 is right."""
    import pooch

    url = spec.base_url + file.name
    try:
        return Path(pooch.retrieve(url, f"sha256:{file.sha256}", file.name, folder))
    except (OSError, ValueError) as error:  # no connection or disk space; another SHA-256
        raise QdeployError(
            f"{url} could not be downloaded to {folder}: {error}. Try again, or put"
            f" {file.name} there yourself."
        ) from error


def _missing(spec: DatasetSpec, root: Path) -> str:
    names = "\n".join(f"  {file.name} or {file.unpacked}" for file in spec.files)
    folders = ", ".join(str(root / folder) for folder in spec.folders)
    return (
        f"the files of {spec.title} are missing:\n{names}\n"
        f"Put them all into one of {folders}, name another folder with --data-root, or let"
        f" --download fetch them from {spec.base_url}"
    )
