"""Lines off a terminal, a bar on one, the log with either."""

import io
from pathlib import Path

from qdeploy.training.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def say_two_lines(stream: io.StringIO, log: Path | None = None) -> None:
    console = Console(log, stream)
    with console.progress(epochs=4, images=100, done=1) as advance:
        advance(1, 50, 0.25)
        console.log("epoch 2 of [bold]4[/bold] " + "long " * 40)
    console.log("done")


def test_off_a_terminal_there_are_plain_lines_only() -> None:
    stream = io.StringIO()
    say_two_lines(stream)
    assert stream.getvalue() == "epoch 2 of [bold]4[/bold] " + "long " * 40 + "\ndone\n"


def test_a_terminal_shows_where_training_is(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    say_two_lines(stream)
    assert "epoch 2/4  loss 0.2500" in stream.getvalue()
    assert "images/s" in stream.getvalue()
    assert "epoch 2 of [bold]4[/bold] " + "long " * 40 in stream.getvalue()


def test_the_log_gets_the_same_lines_and_keeps_the_old_ones(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    stream = io.StringIO()
    say_two_lines(stream, log)
    assert log.read_text() == "before\n" + stream.getvalue()
