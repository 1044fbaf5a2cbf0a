"""The report and the training curves as self-contained pages that open without a network."""

from collections.abc import Mapping, Sequence

from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from qdeploy.record import Record
from qdeploy.report.advice import advice
from qdeploy.report.comparison import Run, comparison
from qdeploy.report.curves import compared_curves, run_curves, run_styles
from qdeploy.report.progress import Progress
from qdeploy.report.section import Chart, Section
from qdeploy.report.sections import sections
from qdeploy.report.summary import headlines

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

    def of(self, section: Section) -> list[tuple[Chart, Markup]]:
        """The charts of a section, each with its element."""
        drawn = section.charts()
        placed = self.place({str(number): chart.figure for number, chart in enumerate(drawn)})
        return list(zip(drawn, placed.values(), strict=True))


def report_page(record: Record) -> str:
    """The whole record as one HTML page."""
    charts = Charts()
    return _render(
        "report.html",
        charts,
        title=record.name,
        record=record,
        headlines=headlines(record),
        advice=advice(record),
        sections=[(section, charts.of(section)) for section in sections(record)],
    )


def training_page(progress: Progress, title: str) -> str:
    """The curves of a run as one HTML page, which reloads itself as long as the run goes on."""
    charts = Charts()
    return _render(
        "training.html",
        charts,
        title=title,
        progress=progress,
        curves=charts.place(run_curves(progress.rows, progress.scores)),
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
