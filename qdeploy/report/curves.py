"""Which charts the columns of metrics.csv make, for one run and for several."""

import math
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from bokeh.plotting import figure

from qdeploy.report.charts import LINES, Line, Numbers, Row, lines_chart
from qdeploy.report.comparison import Run
from qdeploy.report.words import capitalized
from qdeploy.scores import CLASSIFICATION, Score

LOSSES, PARTS = ("_loss",), ("train_", "test_")
COUNTERS = {"epoch", "steps", "seconds"}  # no curves
DECADE = 10


def run_curves(rows: Sequence[Row], scores: Sequence[Score] = CLASSIFICATION) -> dict[str, figure]:
    """{title: chart}: the losses, the scores, and one for the value of each schedule.

    Scores of one unit share a chart: shares are "Accuracy". A value that is missing or infinite
    leaves a gap; a column without any other has no chart.
    """
    columns = [column for column in (rows[0] if rows else ()) if column not in COUNTERS]
    losses = [column for column in columns if column.endswith(LOSSES)]
    schedules = [column for column in columns if not column.startswith(PARTS)]
    charts = {"Loss": _chart(rows, losses, scores)}
    for title, drawn in _by_unit(scores).items():
        names = {f"{part}{score.name}" for score in drawn for part in PARTS}
        charts[title] = _chart(rows, [column for column in columns if column in names], scores)
    for column in schedules:
        charts[_schedule_title(rows, column)] = _chart(rows, [column], scores)
    return {title: chart for title, chart in charts.items() if chart}


def _by_unit(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores of each chart by its title."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        if score.shown:
            found.setdefault("Accuracy" if score.is_share else capitalized(score.title), []).append(
                score
            )
    return found


def compared_curves(runs: Sequence[Run]) -> dict[str, figure]:
    """{title: chart} with a line for each run, in the colour that `run_styles` gives it."""
    headlines = {run.headline.title: f"test_{run.headline.name}" for run in runs}
    columns = {
        **{f"Test {title}": column for title, column in headlines.items()},
        "Test loss": "test_loss",
        "Training loss": "train_loss",
        "Learning rate": "lr",
    }
    charts = {title: _compared(runs, column) for title, column in columns.items()}
    return {title: chart for title, chart in charts.items() if chart}


def run_styles(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(colour, dash) of each run: a colour each, and its parent's, dashed, for a float baseline.

    Where the colours begin again the lines are dotted.
    """
    styles = []
    place = -1
    for run in runs:
        place += not run.is_baseline
        dash = "solid" if place < len(LINES) else "dotted"
        styles.append((LINES[place % len(LINES)], "dashed" if run.is_baseline else dash))
    return styles


def _chart(rows: Sequence[Row], columns: Sequence[str], scores: Sequence[Score]) -> figure | None:
    lines = [
        _line(rows, column, _label(column, scores), color)
        for column, color in zip(columns, cycle(LINES), strict=False)
    ]
    return _drawn(lines, columns[0], scores, legend=len(lines) > 1) if lines else None


def _compared(runs: Sequence[Run], column: str) -> figure | None:
    lines = [
        _line(run.rows, column, run.name, color, dash)
        for run, (color, dash) in zip(runs, run_styles(runs), strict=True)
    ]
    scores = [score for run in runs for score in run.scores]
    return _drawn(lines, column, scores, legend=False)


def _drawn(
    lines: Sequence[Line], column: str, scores: Sequence[Score], legend: bool
) -> figure | None:
    drawn = [line for line in lines if np.isfinite(line.values).any()]
    if not drawn:
        return None
    return lines_chart(
        drawn,
        as_percent=_is_share(column, scores),
        log=_is_logarithmic(drawn, column, scores),
        legend=legend,
    )


def _line(rows: Sequence[Row], column: str, label: str, color: str, dash: str = "solid") -> Line:
    values = _numbers(rows, column)
    return Line(
        label, _numbers(rows, "epoch"), np.where(np.isfinite(values), values, np.nan), color, dash
    )


def _is_share(column: str, scores: Sequence[Score]) -> bool:
    return any(score.is_share and column.endswith(f"_{score.name}") for score in scores)


def _is_logarithmic(lines: Sequence[Line], column: str, scores: Sequence[Score]) -> bool:
    """Whether the values want a logarithmic axis: positive, and decades apart.

    A loss is looked at where it is small, so the lowest and the highest value count. Of a schedule
    the middle half does, in each line: the last step of a cosine is nearly 0 and would take the
    axis for itself.
    """
    values = [line.values[~np.isnan(line.values)] for line in lines]
    together = np.concatenate(values)
    if _is_share(column, scores) or together.min() <= 0:
        return False
    if column.endswith(LOSSES):
        return bool(together.max() >= DECADE * together.min())
    quartiles = (np.quantile(one, (0.25, 0.75)) for one in values)
    return all(high >= DECADE * low for low, high in quartiles)


def _schedule_title(rows: Sequence[Row], column: str) -> str:
    """The column's name, and since when its value is infinite, which no chart can show."""
    infinite = [row["epoch"] for row in rows if math.isinf(row.get(column) or 0)]
    since = f", infinite from epoch {infinite[0]:.0f}" if infinite else ""
    return _label(column, ()).capitalize() + since


def _label(column: str, scores: Sequence[Score]) -> str:
    """A column in words: test_top1 is "test top-1", lr "learning rate"."""
    if column == "lr":
        return "learning rate"
    titles = {f"{part}{score.name}": f"{part}{score.title}" for score in scores for part in PARTS}
    return titles.get(column, column).replace("_", " ")


def _numbers(rows: Sequence[Row], column: str) -> Numbers:
    return np.array([row.get(column) for row in rows], dtype=np.float64)
