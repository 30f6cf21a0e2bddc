"""Files on the Data page: the findings of a scan that decodes every file, or a button that starts one.

A separate process does the work (`python -m sousa_engine scan ...`) and continues when the page is closed. It decodes
in workers with limited memory and time; this page never decodes files to check them. The progress is kept in the
workspace, so any page can show it, also after a reload.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from sousa_engine.analysis.export import findings_csv
from sousa_engine.core.config import DataConfig, with_values
from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.data import findings, scan, synth
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.findings import KINDS, Findings
from sousa_engine.runs import background
from sousa_engine.web import parts, reading_view
from sousa_engine.workspace import Workspace, intake
from sousa_engine.workspace.intake import Intake

REFRESH_S = 1
_STRICT = "strict"


def files_section(data: DataConfig, workspace: Workspace) -> None:
    """Draw the section, refreshed every second during a scan. Draws nothing for embedded sets, whose clips are
    synthesised, or without a data set."""
    if data.dataset in synth.PRESETS:
        return
    try:
        opened(data, workspace)
    except (UserError, WorkspaceError):  # reported above, where the data set is opened
        return
    st.subheader("Files", anchor=False)
    # Not in the fragment, because the link to Launch above depends on it.
    strict = st.toggle(
        "Strict", key=_STRICT, bind="query-params",
        help="Refuse to train if any file or label is invalid. If off, such files are left out.",
    )  # fmt: skip
    data = with_values(data, strict=strict)
    doing = scan.look(data, workspace)
    running = doing is not None and doing.is_running
    st.fragment(section, run_every=REFRESH_S if running else None)(data, workspace, running)


def query_of_launch(dataset: str, **more: str) -> dict[str, str]:
    """Query parameters for a link to Launch: the data set, and strict mode if it is on."""
    is_strict = st.session_state.get(_STRICT, st.query_params.get(_STRICT) == "true")
    # Not the switch's own name: Streamlit removes parameters bound to a widget here from the next page's URL.
    return {"dataset": dataset, **more, **reading_view.query(), **({"data.strict": "true"} if is_strict else {})}


def opened(data: DataConfig, workspace: Workspace) -> DataSet:
    """The data set, opened once for all sessions until a scan has new results. Raises the errors of DataSet.open."""
    return _opened(with_values(data, strict=False), workspace, scan.stamp(data, workspace))


def forget() -> None:
    """Forget the opened data sets."""
    _opened.clear()


def section(data: DataConfig, workspace: Workspace, was_running: bool) -> None:
    """The findings, and the progress or a button. When a scan ends, the whole page is redrawn."""
    doing = scan.look(data, workspace)
    running = doing is not None and doing.is_running
    if running != was_running:
        forget()
        st.rerun()
    if running:
        progress(doing, scan.folder_of(data, workspace))
        return
    found = opened(data, workspace).findings
    if data.strict:
        found = findings.as_strict(found)
    in_short(found)
    if found.findings:
        table(found)
    offer(data, workspace, found, doing)


@st.cache_resource(
    max_entries=6,
    ttl=600,
    show_spinner="Opening the data set …",
    hash_funcs={DataConfig: DataConfig.model_dump_json, Workspace: lambda workspace: str(workspace.root)},
)
def _opened(data: DataConfig, workspace: Workspace, stamp: tuple[int, int]) -> DataSet:
    """stamp: identifies the scan results so far; a new stamp opens the data set again."""
    return DataSet.open(data, workspace)


def in_short(found: Findings) -> None:
    """One sentence: whether the data can be used for training, and how much of it."""
    words = parts.plain(findings.in_words(found))
    if waiting := found.files - found.scanned:
        words += f"; {waiting:,} files not decoded yet"
    if found.refusal and found.strict:
        st.markdown(f":red[:material/block:] {words}. Strict mode refuses to train on this data.")
    elif found.errors:
        st.markdown(f":orange[:material/warning:] {words}.")
    else:
        st.markdown(f"{'' if waiting else ':green[:material/check:] '}{words}.")
    if others := findings.passed_over(found):
        st.caption(parts.plain(f"{others[0].upper()}{others[1:]}."))


def table(found: Findings) -> None:
    """The number of findings of each kind, the findings, and a download of all of them."""
    kinds = list(found.kinds)
    chosen = st.pills(
        "Kind", kinds, selection_mode="multi", key="data.kinds", label_visibility="collapsed",
        format_func=lambda kind: f"{KINDS[kind]} · {found.kinds[kind]:,}",
    )  # fmt: skip
    shown = [one for one in found.findings if not chosen or one.kind in chosen]
    rows = pd.DataFrame(
        {
            "file": [one.name or "the whole data set" for one in shown],
            "why": [one.reason for one in shown],
            "level": [one.level for one in shown],
            "kind": [KINDS[one.kind] for one in shown],
        }
    )
    st.dataframe(
        rows,
        hide_index=True,
        height="auto" if len(rows) < 10 else 360,
        column_config={
            "file": st.column_config.TextColumn("File, row or label", width=210),
            "why": st.column_config.TextColumn("Reason and fix", width=620),
            "level": st.column_config.TextColumn("Level", width=76, help="Errors are left out, warnings are used."),
            "kind": st.column_config.TextColumn("Kind", width=150),
        },
        alt="Findings: file, reason, level and kind",
    )
    st.download_button(
        "Download as CSV", findings_csv(found.findings), "findings.csv", "text/csv",
        icon=":material/download:", on_click="ignore", key="data.findings",
    )  # fmt: skip


def progress(doing: Intake | None, folder: Path) -> None:
    if doing is None or doing.doing != scan.SCANNING or not doing.total:
        st.progress(0.0, text="Starting …")
    else:
        rate = f", {doing.bytes_per_s:,.0f} per second" if doing.bytes_per_s else ""
        st.progress(min(1.0, doing.done / doing.total), text=f"Decoding files: {doing.done:,} of {doing.total:,}{rate}")
    st.button(
        "Stop", icon=":material/stop_circle:", on_click=intake.ask_to_stop, args=(folder,), key="scan.stop",
        help="The files decoded so far are kept; a later scan continues from there.",
    )  # fmt: skip


def offer(data: DataConfig, workspace: Workspace, found: Findings, ended: Intake | None) -> None:
    if ended:
        stopped = ended.error == intake.STOPPED
        show, icon = (st.info, "stop_circle") if stopped else (st.error, "error")
        show(parts.plain(f"{parts.when(ended.at_ms)}: {ended.error}"), icon=f":material/{icon}:")
    waiting = found.files - found.scanned
    if waiting:
        st.caption(
            "Only file headers have been read. A scan decodes each file once, in the background; runs do this before "
            "training."
        )
    label = "Scan the files" if waiting else "Scan again"
    if st.button(
        label, icon=":material/troubleshoot:", type="secondary" if waiting else "tertiary", key="scan.start",
        help="Decodes the files that have not been scanned." if waiting else "Decodes all files again.",
    ):  # fmt: skip
        try:
            background.scan_data(workspace, data, fresh=not waiting)  # False: already started by another process
        except (UserError, WorkspaceError) as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            return
        st.rerun()
