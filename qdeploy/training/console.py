"""What a run says: a progress bar on a terminal, one line an epoch anywhere, all of it in a log."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import rich.console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from qdeploy import processes

Advance = Callable[[int, int, float], None]


class Console:
    """Lines to a stream (standard output unless given) and, where there is one, to a log file.

    Only the first process of a run speaks and writes.
    """

    def __init__(self, log: Path | None = None, stream: TextIO | None = None) -> None:
        silent = processes.rank() > 0
        self.stream = stream
        self._screen = rich.console.Console(
            file=stream or sys.stdout, highlight=False, quiet=silent
        )
        self._log = None if silent else log

    def log(self, text: str) -> None:
        """Print `text`, and append it to the log."""
        self._screen.print(text, markup=False, soft_wrap=True)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    @contextmanager
    def progress(self, epochs: int, images: int, done: int) -> Iterator[Advance]:
        """A bar over `epochs` of `images` each, `done` of them finished; none off a terminal.

        Yields what moves it on: `images` more are trained in `epoch` (from 0), whose mean loss is given.
        """
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            ImageRate(),
            TimeRemainingColumn(),
            console=self._screen,
            transient=True,
            disable=not self._screen.is_terminal,
        )
        with bar:
            task = bar.add_task("", total=epochs * images, completed=done * images)

            def advance(epoch: int, images: int, loss: float) -> None:
                text = f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}"
                bar.update(task, advance=images, description=text)

            yield advance


class ImageRate(ProgressColumn):
    """Images trained a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} images/s")
