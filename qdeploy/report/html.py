"""The report and the training curves as self-contained pages that open without a network."""

import json
from collections.abc import Mapping, Sequence

from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from qdeploy.record import Record
from qdeploy.report import sections
from qdeploy.report.advice import advice
from qdeploy.report.charts import bars, histogram
from qdeploy.report.comparison import Run, comparison
from qdeploy.report.curves import compared_curves, run_curves, run_styles
from qdeploy.report.progress import Progress
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
        advice=advice(record),
        overview=charts.place(_overview(record)),
        curves=charts.place(run_curves(record.training)),
        codes=charts.place(
            {layer.name: histogram(layer) for layer in record.layers if layer.levels}
        ),
        recipe=json.dumps(record.recipe, indent=2),
    )


def training_page(progress: Progress, title: str) -> str:
    """The curves of a run as one HTML page, which reloads itself as long as the run goes on."""
    charts = Charts()
    return _render(
        "training.html",
        charts,
        title=title,
        progress=progress,
        curves=charts.place(run_curves(progress.rows)),
    )


def comparison_page(runs: Sequence[Run]) -> str:
    """The curves of several runs over each other, and a table of them, as one HTML page."""
    charts = Charts()
    names = [run.name for run in runs if not run.is_baseline]
    return _render(
        "comparison.html",
        charts,
        title=names[0] if len(names) == 1 else f"{len(names)} runs compared",
        runs=runs,
        styles=run_styles(runs),
        table=comparison(runs),
        curves=charts.place(compared_curves(runs)),
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
