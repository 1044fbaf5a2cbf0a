"""A section of the report, as Markdown and HTML take it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bokeh.plotting import figure


@dataclass(frozen=True)
class Chart:
    """A chart, what stands above it in bold, and what follows that."""

    figure: figure
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of the report: a table, a text, charts, or several of them.

    note      a sentence or two below the title.
    columns   of the table, "" where there is none; later columns are numbers.
    rows      no rows mean that nothing of it was measured.
    text      lines to show as they are.
    appendix  the title of a longer text, and that text, which opens at a click.
    charts    draws them; only HTML does.
    layout    how charts stand: "chart" is one above the table, "pair" two in a row, without note and
              table, "histograms" many small ones.
    words     whether the columns hold words, which wrap.
    folds     what the rows are, where the table is long and opens at a click.
    beside    whether it stands beside its neighbour, if that does as well.
    shown     whether it is part of this report at all.
    """

    title: str
    note: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""
    appendix: tuple[str, str] | None = None
    charts: Callable[[], Sequence[Chart]] = tuple
    layout: str = "chart"
    words: bool = False
    folds: str = ""
    beside: bool = False
    shown: bool = True
