"""The charts of the pages, drawn by bokeh in one style."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import BasicTicker, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from qdeploy.report.record import Layer

FONT = "system-ui, sans-serif"
INK, FAINT, ACCENT = "#1f2933", "#dde3ea", "#2563a8"
BAR = "#9fb7d1"
LINES = (ACCENT, "#d1663f", "#4c9f70")

Row = Mapping[str, float | None]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def bars(values: Mapping[str, float], labels: Sequence[str], accent: str) -> figure:
    """Horizontal bars from 0, each with its label behind it; the bar named `accent` stands out."""
    names = list(values)
    chart = _figure(
        height=40 * len(names) + 16,
        y_range=names[::-1],
        x_range=Range1d(start=0, end=1.35 * max(values.values())),
    )
    colors = [ACCENT if name == accent else BAR for name in names]
    widths = list(values.values())
    chart.hbar(y=names, right=widths, height=0.6, color=colors)
    chart.text(
        x=widths,
        y=names,
        text=list(labels),
        x_offset=8,
        text_baseline="middle",
        text_font=value(FONT),
        text_font_size="13px",
        text_color=INK,
    )
    chart.xaxis.visible = False
    chart.grid.visible = False
    chart.axis.major_tick_line_color = None
    chart.yaxis.major_label_text_font_size = "13px"
    return chart


def curves(rows: Sequence[Row], columns: Sequence[str], as_percent: bool) -> figure:
    """One line for each of `columns` over the column "epoch"; a missing value leaves a gap."""
    chart = _figure(height=260, x_axis_label="epoch")
    epochs = _numbers(rows, "epoch")
    for column, color in zip(columns, LINES, strict=False):
        points = _numbers(rows, column)
        name = column.replace("_", " ").replace("top", "top-")
        chart.line(epochs, points, color=color, line_width=2, legend_label=name)
        chart.scatter(epochs, points, color=color, size=4, legend_label=name)
    chart.xaxis.ticker = BasicTicker(min_interval=1)
    if as_percent:
        chart.yaxis.formatter = NumeralTickFormatter(format="0.[0] %")
    chart.add_tools(HoverTool(tooltips=[("epoch", "@x"), ("value", "@y{0.0000}")]))
    _style_legend(chart)
    return chart


def histogram(layer: Layer) -> figure:
    """How many weights of a layer hold each code."""
    codes = sorted(layer.levels)
    counts = [layer.levels[code] for code in codes]
    gap = min((b - a for a, b in pairwise(codes)), default=1)
    reach = max(map(abs, codes)) + gap
    chart = _figure(
        height=120,
        x_range=Range1d(start=-reach, end=reach),
        y_range=Range1d(start=0, end=1.05 * max(counts)),
    )
    chart.vbar(x=codes, top=counts, width=0.8 * gap, color=ACCENT)
    chart.yaxis.visible = False
    chart.ygrid.visible = False
    chart.xaxis.ticker = codes if len(codes) <= 5 else [codes[0], 0, codes[-1]]
    chart.add_tools(HoverTool(tooltips=[("code", "@x"), ("weights", "@top{0,0}")]))
    return chart


def _numbers(rows: Sequence[Row], column: str) -> Numbers:
    return np.array([row.get(column) for row in rows], dtype=np.float64)


def _figure(**options: Any) -> figure:
    chart = figure(
        tools="",
        toolbar_location=None,
        sizing_mode="stretch_width",
        outline_line_color=None,
        **options,
    )
    chart.background_fill_alpha = chart.border_fill_alpha = 0
    chart.grid.grid_line_color = FAINT
    chart.axis.axis_line_color = chart.axis.major_tick_line_color = FAINT
    chart.axis.minor_tick_line_color = None
    chart.axis.major_label_text_color = chart.axis.axis_label_text_color = INK
    chart.axis.major_label_text_font = chart.axis.axis_label_text_font = FONT
    chart.axis.axis_label_text_font_style = "normal"
    return chart


def _style_legend(chart: figure) -> None:
    chart.legend.label_text_font = FONT
    chart.legend.label_text_color = INK
    chart.legend.border_line_color = None
    chart.legend.background_fill_alpha = 0.8
    chart.legend.orientation = "horizontal"
    chart.add_layout(chart.legend[0], "above")
