"""The report and the training curves as self-contained pages that open without a network."""

import json
from collections.abc import Mapping, Sequence

from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from qdeploy.report import sections
from qdeploy.report.charts import Row, bars, curves, histogram
from qdeploy.report.record import Record
from qdeploy.report.summary import headlines
from qdeploy.report.words import percent, size

TEMPLATES = Environment(
    loader=PackageLoader("qdeploy.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Charts:
    """Gathers the charts of one page: each gives its place in the page, all share one script."""

    def __init__(self) -> None:
        self.script = Markup()

    def place(self, charts: Mapping[str, figure]) -> dict[str, Markup]:
        """{name: the element that the chart is drawn into}."""
        if not charts:
            return {}
        script, elements = components(dict(charts))
        self.script += Markup(script)
        return {name: Markup(element) for name, element in elements.items()}


def report_page(record: Record) -> str:
    """The whole record as one HTML page."""
    charts = Charts()
    return _render(
        "report.html",
        charts,
        title=record.name,
        record=record,
        sections=sections,
        headlines=headlines(record),
        overview=charts.place(_overview(record)),
        curves=charts.place(_curves(record.training)),
        codes=charts.place(
            {layer.name: histogram(layer) for layer in record.layers if layer.levels}
        ),
        recipe=json.dumps(record.recipe, indent=2),
    )


def training_page(rows: Sequence[Row], title: str) -> str:
    """Loss and accuracy over the epochs as one HTML page; `rows` are those of metrics.csv."""
    charts = Charts()
    return _render(
        "training.html", charts, title=title, epochs=len(rows), curves=charts.place(_curves(rows))
    )


def _render(template: str, charts: Charts, **content: object) -> str:
    bokeh = Markup(Resources(mode="inline", components=["bokeh"]).render())
    return TEMPLATES.get_template(template).render(bokeh=bokeh, script=charts.script, **content)


def _overview(record: Record) -> dict[str, figure]:
    networks = {
        "float": record.accuracy.float,
        "trained": record.accuracy.trained,
        "ONNX": record.accuracy.onnx,
    }
    top1 = {name: accuracy.top1 for name, accuracy in networks.items() if accuracy}
    forms = {
        "float32": record.size.float,
        "int8": record.size.int8,
        "exported": record.size.onnx,
        "bound": record.size.bound,
    }
    counts = {name: count for name, count in forms.items() if count}
    charts = {"sizes": bars(counts, [size(count) for count in counts.values()], accent="exported")}
    if top1:
        charts["accuracy"] = bars(top1, [percent(share) for share in top1.values()], accent="ONNX")
    return charts


def _curves(rows: Sequence[Row]) -> dict[str, figure]:
    """Columns of losses and of accuracies, told by their ends: train_loss, test_top1."""
    columns = list(rows[0]) if rows else []
    kinds = {"Loss": ("loss",), "Accuracy": ("top1", "top5")}
    chosen = {kind: [c for c in columns if c.endswith(ends)] for kind, ends in kinds.items()}
    return {
        kind: curves(rows, names, as_percent=kind == "Accuracy")
        for kind, names in chosen.items()
        if names
    }
