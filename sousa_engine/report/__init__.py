"""A comparison as a document: Markdown, CSV, or one HTML file with charts, which needs no server and no network.

    found = report.read(store, sweep=store.sweeps.find("last"))      # or runs=[...]
    report.markdown(found), report.csv(found), report.html(found)

It uses the same functions as the Compare page. read.py gathers the data, sections.py writes the text and tables,
figures.py draws the charts, and page.py, text.py and table.py write the three formats.
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
