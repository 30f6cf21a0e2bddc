"""Downloads of a comparison as a report, created when clicked."""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from sousa_engine import report
from sousa_engine.store import Store
from sousa_engine.workspace import default_workspace

KINDS = {  # format -> (label, type, icon, help)
    "html": ("HTML with charts", "text/html", ":material/insert_chart:", "One file; needs no server and no network."),
    "markdown": ("Markdown", "text/markdown", ":material/description:", "For an issue, a wiki or a terminal."),
    "csv": ("CSV of the runs", "text/csv", ":material/table:", "One line per run, for a spreadsheet."),
}


def report_downloads(name: str, *, sweep_id: str = "", run_ids: Sequence[str] = ()) -> None:
    """A popover with the report of a sweep, or of these runs, in each format. name: base name of the files."""
    suffixes = {form: suffix for suffix, form in report.SUFFIXES.items()}
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "report"
    with st.popover("Report", icon=":material/summarize:", help="Verdict, tables and charts to save or share."):
        for form, (label, mime, icon, said) in KINDS.items():
            st.download_button(
                label, data=lambda form=form: made(form, sweep_id, run_ids), file_name=f"{stem}{suffixes[form]}",
                mime=mime, icon=icon, help=said, on_click="ignore", key=f"report.{form}", width="stretch",
            )  # fmt: skip


def made(form: str, sweep_id: str = "", run_ids: Sequence[str] = ()) -> bytes:
    """The report as bytes of a file. Runs deleted in the meantime are left out."""
    with Store.open(default_workspace()) as store:
        runs = [run for run in map(store.runs.get, run_ids) if run is not None]
        sweep = store.sweeps.find(sweep_id) if sweep_id else None
        found = report.of_workspace(store, sweep, runs)
    return report.encoded(report.FORMATS[form](found), form)
