"""What a run knows of the image files that it is trained on: images.json in its folder."""

from __future__ import annotations

from qdeploy.data import Data, Survey
from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.run import RunFolder


def read_survey(run: RunFolder) -> Survey | None:
    """None for a run without image files. Errors: QdeployError if the file is damaged."""
    if not run.survey.is_file():
        return None
    try:
        return Survey.from_json(run.survey.read_text("utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise QdeployError(
            f"{run.survey} cannot be read ({error}); copy it again, or start the run anew with --force"
        ) from error


def write_survey(run: RunFolder, data: Data) -> None:
    if data.survey is not None:
        with atomic_write(run.survey) as file:
            file.write(data.survey.to_json().encode())


def check_same_images(began: Survey | None, data: Data, run: RunFolder) -> None:
    """Errors: QdeployError if files came or went since the run began: its batches would be others."""
    now = data.survey
    if began is not None and now is not None and now.listing != began.listing:
        raise QdeployError(
            f"{run.path} was trained on other images: it began with {began.files:,} files, and now some of "
            "them have another name, or came, or went. Put back what was there, or start anew with --force"
        )
