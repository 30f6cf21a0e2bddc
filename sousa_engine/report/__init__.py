"""A comparison as a document: Markdown, CSV, or one HTML file with its charts that needs no server and no network.

    found = report.read(store, sweep=store.find_sweep("last"))      # or runs=[...]
    report.markdown(found), report.csv(found), report.html(found)

It says what page Compare shows, by the same functions: what is known stands in read.py, the words in sections.py, the
figures in figures.py, and the three writers know none of it.
"""

from sousa_engine.report.page import html
from sousa_engine.report.read import Reference, Report, build, encoded, of_workspace, read
from sousa_engine.report.table import csv
from sousa_engine.report.text import markdown

FORMATS = {"markdown": markdown, "csv": csv, "html": html}
SUFFIXES = {".md": "markdown", ".csv": "csv", ".html": "html"}

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Reference",
    "Report",
    "build",
    "csv",
    "encoded",
    "html",
    "markdown",
    "of_workspace",
    "read",
]
