"""A report as Markdown, for a terminal, a wiki or an issue. It has all tables, but no charts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sousa_engine.core import outside
from sousa_engine.report.read import Report
from sousa_engine.report.sections import Section, Table, caveats, counted, lead, made, sections


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown; the columns of its tables are also aligned in plain text."""
    return "\n".join([*_head(report), *(line for section in sections(report) for line in _section(section))])


def _head(report: Report) -> Iterator[str]:
    yield from (f"# {plain(report.title)}", "", plain(made(report)), "", plain(_lead(report)), "")
    for caveat in caveats(report):
        yield from (plain(caveat), "")
    yield from ("## Verdict", "", f"**{plain(report.conclusion.verdict)}**", "")
    if report.conclusion.notes:
        yield from (*(f"- {plain(note)}" for note in report.conclusion.notes), "")


def _lead(report: Report) -> str:
    statuses = ", ".join(text for _, text in counted(report))
    return f"{lead(report)}: {statuses}." if statuses else lead(report)


def _section(section: Section) -> Iterator[str]:
    if not (section.lines or section.code or section.tables):
        return  # only charts
    yield from (f"## {section.title}", "")
    if section.lines:
        mark = "- " if len(section.lines) > 1 else ""
        yield from (*(f"{mark}{plain(line)}" for line in section.lines), "")
    for table in section.tables:
        if table.name == "Most frequent errors":
            yield from (f"### {table.name}", "")
        yield from (*_table(table), "")
    if section.code:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", section.code)), default=0))
        yield from (f"{fence}yaml", section.code.rstrip("\n"), fence, "")
    for line in section.small:
        yield from (plain(line), "")


def _table(table: Table) -> Iterator[str]:
    rows = [[plain(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    right = [i in table.numbers for i in range(len(widths))]
    yield _line(rows[0], widths, right)
    yield _line(
        ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)], widths, right
    )
    for row in rows[1:]:
        yield _line(row, widths, right)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
    return f"| {' | '.join(padded)} |"


def plain(text: str) -> str:
    """Any text on one line, with the special characters of Markdown and HTML escaped.

    An underscore inside a word has no meaning in Markdown and is not escaped.
    """
    return re.sub(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", outside.for_terminal(" ".join(text.split())))
