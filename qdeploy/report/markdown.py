"""The report as Markdown, for a pull request or a model card."""

from qdeploy.record import Record
from qdeploy.report import sections
from qdeploy.report.advice import advice
from qdeploy.report.sections import Section
from qdeploy.report.summary import headlines
from qdeploy.report.words import NOT_MEASURED, exact


def markdown(record: Record) -> str:
    """The whole record as Markdown with tables, ending in a newline."""
    parts = [
        f"# {record.name}",
        f"{record.method} on {record.dataset.title}, {record.created}.",
        _table(("", "", ""), tuple((h.label, f"**{h.value}**", h.note) for h in headlines(record))),
        *advice(record),
        *map(_section, _sections(record)),
        _folded(sections.ran(record)),
        f"## Training\n\n{_training(record)}",
        f"## Quantization\n\n```text\n{record.settings}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _sections(record: Record) -> tuple[Section, ...]:
    demands = (sections.gates(record),) if record.gates else ()
    exceptions = sections.coverage(record)
    return (
        *demands,
        sections.accuracy(record),
        sections.agreement(record),
        sections.sizes(record),
        sections.latency(record),
        sections.operators(record),
        *([exceptions] if exceptions.rows else ()),
        sections.complexity(record),
        sections.complexity_by_layer(record),
        sections.layers(record),
        sections.machine(record),
    )


def _section(section: Section) -> str:
    body = _table(section.columns, section.rows) if section.rows else f"_{NOT_MEASURED}_"
    return f"## {section.title}\n\n{section.note}\n\n{body}"


def _folded(section: Section) -> str:
    """A long table that opens at a click, in readers that know HTML."""
    return f"<details><summary>Every kernel</summary>\n\n{_section(section)}\n\n</details>"


def _table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _training(record: Record) -> str:
    if not record.training:
        return f"_{NOT_MEASURED}_"
    last = record.training[-1]
    values = tuple(map(exact, last.values()))
    return f"The last epoch; report.html has the curves.\n\n{_table(tuple(last), (values,))}"
