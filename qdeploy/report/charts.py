"""The charts of the pages, drawn by bokeh in one style."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    PrintfTickFormatter,
    Range1d,
)
from bokeh.plotting import figure

from qdeploy.record import ShippedLayer

FONT = "system-ui, sans-serif"
INK, FAINT, ACCENT = "#1f2933", "#dde3ea", "#2563a8"
BAR = "#9fb7d1"
# Okabe and Ito's colours for every eye, without the yellow that white swallows.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

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


@dataclass(frozen=True)
class Line:
    """One line of a chart: values over epochs, NaN for a gap; `dash` is a word of bokeh."""

    label: str
    epochs: Numbers
    values: Numbers
    color: str
    dash: str = "solid"


def lines_chart(lines: Sequence[Line], *, as_percent: bool, log: bool, legend: bool) -> figure:
    """Lines over the epochs, a point for each; `log` is for the axis of the values."""
    chart = _figure(
        height=260,
        x_axis_label="epoch",
        x_range=_epoch_range(np.concatenate([line.epochs for line in lines])),
        y_axis_type="log" if log else "linear",
    )
    for line in lines:
        source = ColumnDataSource(
            {"epoch": line.epochs, "value": line.values, "line": [line.label] * len(line.values)}
        )
        style: dict[str, Any] = {"source": source, "color": line.color}
        if legend:
            style["legend_label"] = line.label
        chart.line("epoch", "value", line_width=2, line_dash=line.dash, **style)
        chart.scatter("epoch", "value", size=4, **style)
    chart.xaxis.ticker = BasicTicker(min_interval=1)
    values = np.concatenate([line.values for line in lines])
    low, high = np.nanmin(values), np.nanmax(values)
    if log:
        chart.yaxis.ticker = chart.ygrid.ticker = FixedTicker(ticks=_log_ticks(low, high))
    elif low == high > 0:  # bokeh would show 1 on either side, however small the value
        chart.y_range = Range1d(start=0, end=1.05 if as_percent else 2 * high)
    if as_percent:
        chart.yaxis.formatter = NumeralTickFormatter(format="0.[0] %")
    else:
        chart.yaxis.formatter = PrintfTickFormatter(format="%.6g")
    shown = "@value{0.00 %}" if as_percent else "@value{%.4g}"
    chart.add_tools(
        HoverTool(
            tooltips=[("", "@line"), ("epoch", "@epoch"), ("value", shown)],
            formatters={} if as_percent else {"@value": "printf"},
        )
    )
    if legend:
        _style_legend(chart)
    return chart


def _epoch_range(epochs: Numbers) -> Range1d:
    """All epochs, those without a value too, so that the charts of a page stand in line."""
    margin = max(0.5, 0.02 * np.ptp(epochs))
    return Range1d(start=epochs.min() - margin, end=epochs.max() + margin)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade around the values; of many decades only the 1."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps]


def histogram(layer: ShippedLayer) -> figure:
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
    chart.legend.ncols = 2  # as many as a telephone has room for
    chart.add_layout(chart.legend[0], "above")
