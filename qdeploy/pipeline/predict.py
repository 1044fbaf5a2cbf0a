"""predict: an exported file on pictures, prepared as testing prepared them. No torch is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qdeploy.benchmark import Session, open_session
from qdeploy.errors import QdeployError
from qdeploy.pictures.listing import SUFFIXES, first_of, images_below
from qdeploy.pictures.preprocessing import preprocessing_of
from qdeploy.pictures.reading import read, size_of

SHOWN = 3  # classes of a picture, where there are more


@dataclass(frozen=True)
class Guess:
    """A class and its share (0..1) of the softmax."""

    name: str
    share: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a picture, the first one first: three, or one of three or fewer."""

    picture: str
    classes: tuple[Guess, ...]


def predict(model: Path, given: Sequence[Path], provider: str = "auto") -> Iterator[Prediction]:
    """The classes of each picture, one after the other; of a folder, of all pictures in it.

    Errors: QdeployError for a file whose metadata does not say how pictures become its input and
    what its classes are, before any picture is read; for a folder without pictures; and for a picture
    that cannot be read.
    """
    session = open_session(model, provider, os.cpu_count() or 1)
    pixels = session.input_type == np.uint8
    prepared = preprocessing_of(session.metadata, session.input_shape, pixels, model)
    classes = class_names(session, model)
    for path in pictures(given):
        outputs = session.run_all(prepared(read(path)))
        if [output.shape for output in outputs] != [(1, len(classes))]:
            shapes = " and ".join(str(list(output.shape)) for output in outputs)
            raise QdeployError(
                f"{model} gives {shapes} for one picture, and its metadata has {len(classes)} classes; "
                "qdeploy predict is for files that give one number a class. Run others in ONNX Runtime, and "
                "read their outputs as the task does (docs/tasks.md)"
            )
        yield Prediction(str(path), best(outputs[0][0], classes))


def class_names(session: Session, model: Path) -> list[str]:
    try:
        found = json.loads(session.metadata["qdeploy.classes"])
        return [str(name) for name in found]
    except (KeyError, TypeError, ValueError):
        raise QdeployError(
            f"{model} does not name its classes (metadata qdeploy.classes); files that `qdeploy export` "
            "wrote do, and `qdeploy.export` with classes=[...]"
        ) from None


def pictures(given: Sequence[Path]) -> list[Path]:
    """The files, and the pictures in the folders, at any depth.

    Errors: QdeployError for a folder without any, and for all files that are bad, in one.
    """
    found: list[Path] = []
    for path in given:
        below = images_below(path) if path.is_dir() else [path]
        if not below:
            raise QdeployError(f"{path} holds no picture; allowed are {', '.join(SUFFIXES)}")
        found += below
    problems = list(problems_of(found))
    if problems:
        raise QdeployError(first_of(problems))
    return found


def problems_of(paths: Sequence[Path]) -> Iterator[str]:
    """Why files cannot be read, as far as their headers say."""
    for path in paths:
        try:
            size_of(path)
        except QdeployError as error:
            yield str(error)


def best(logits: np.ndarray, classes: Sequence[str]) -> tuple[Guess, ...]:
    """The likeliest of `classes`, of equals the first."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares = powers / powers.sum()
    shown = SHOWN if len(classes) > SHOWN else 1
    order = np.argsort(-shares, kind="stable")[:shown]
    return tuple(Guess(classes[number], float(shares[number])) for number in order)


def predictions_json(predictions: Sequence[Prediction]) -> str:
    return json.dumps([asdict(prediction) for prediction in predictions], indent=2)
