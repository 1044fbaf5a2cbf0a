"""The report as Markdown, for a pull request or a model card."""

from collections.abc import Iterator

from qdeploy.record import Record
from qdeploy.report.advice import advice
from qdeploy.report.section import Section
from qdeploy.report.sections import sections
from qdeploy.report.summary import headlines
from qdeploy.report.words import NOT_MEASURED


def markdown(record: Record) -> str:
    """The whole record as Markdown with tables, ending in a newline."""
    parts = [
        f"# {record.name}",
        f"{record.method} on {record.dataset.title}, {record.created}.",
        _table(("", "", ""), tuple((h.label, f"**{h.value}**", h.note) for h in headlines(record))),
        *advice(record),
        *("\n\n".join(_section(section)) for section in sections(record) if _has_words(section)),
    ]
    return "\n\n".join(parts) + "\n"


def _has_words(section: Section) -> bool:
    """False for one of charts alone, which only HTML can draw."""
    return bool(section.columns or section.text)


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    if section.note and (section.rows or section.text):
        yield section.note
    if section.text:
        yield f"```text\n{section.text}\n```"
    elif not section.rows:
        yield f"_{NOT_MEASURED}_"
    elif section.folds:
        yield _folded(f"{len(section.rows)} {section.folds}", _table(section.columns, section.rows))
    else:
        yield _table(section.columns, section.rows)
    if section.appendix is not None:
        title, text = section.appendix
        yield _folded(title, f"```json\n{text}\n```")


def _folded(summary: str, content: str) -> str:
    """What opens at a click, in readers that know HTML."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def _table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
