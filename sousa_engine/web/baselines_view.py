"""Baselines on the Data page: a table if they are computed, otherwise a button that computes them.

A separate process does the work (`python -m sousa_engine baselines ...`) and continues when the page is closed. Its
progress is kept in the workspace, so any page can show it, also after a reload.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from sousa_engine.analysis import baselines
from sousa_engine.analysis.baselines import Baselines
from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.data.dataset import DataSet
from sousa_engine.runs import background
from sousa_engine.web import parts, scan_view
from sousa_engine.workspace import Workspace, intake
from sousa_engine.workspace.intake import Intake

REFRESH_S = 1


def baselines_section(data: DataSet, workspace: Workspace) -> None:
    """Draw the section, refreshed every second while the baselines of this data set are being computed."""
    st.subheader("Baselines", anchor=False)
    doing = baselines.look(data.manifest, workspace)
    running = doing is not None and doing.is_running
    st.fragment(section, run_every=REFRESH_S if running else None)(data, workspace, running)
    st.page_link(
        parts.page_path("launch"),
        label="Train a linear probe",
        icon=":material/rocket_launch:",
        query_params=scan_view.query_of_launch(data.config.dataset, lora="probe"),
        help="The next step up: a new head on a frozen pretrained backbone.",
    )


def section(data: DataSet, workspace: Workspace, was_running: bool) -> None:
    """The table, the progress or the button. When the computation ends, the whole page is redrawn."""
    doing = baselines.look(data.manifest, workspace)
    running = doing is not None and doing.is_running
    if running != was_running:
        st.rerun()
    found = baselines.cached(data.manifest, workspace)
    if found:
        table(found)
    elif doing and running:
        progress(doing, baselines.folder_of(data.manifest, workspace))
    else:
        offer(data, workspace, doing)


def table(found: Baselines) -> None:
    n = found.baselines[0].n
    st.caption(
        "How far you get without a neural network: a run should do better than this. "
        f"Test accuracy, n = {n:,}; fitted on train and selected on valid, as for runs. "
        f"Computed {parts.when(found.computed_at_ms)}."
    )
    rows = []
    for one in found.baselines:
        sure = one.accuracy
        rows.append(
            {
                "baseline": one.title,
                "accuracy": sure.value,
                "interval": f"{100 * sure.low:.1f} to {100 * sure.high:.1f} %",
                "macro_f1": one.macro_f1,
                "by": baselines.tried_text(one),
            }
        )
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content",
        column_config={
            "baseline": st.column_config.TextColumn("Baseline", width="medium"),
            "accuracy": st.column_config.ProgressColumn(
                "Test accuracy", format="percent", min_value=0.0, max_value=1.0, width="small"
            ),
            "interval": st.column_config.TextColumn("95 % interval", width="small"),
            "macro_f1": st.column_config.NumberColumn("Macro-F1", format="%.3f", width="small"),
            "by": st.column_config.TextColumn("Classifier", width="large"),
        },
        alt="Test accuracy of each baseline, with its interval",
    )


def progress(doing: Intake, folder: Path) -> None:
    words = {baselines.LISTENING: "Analysing clips", baselines.CHOOSING: "Fitting classifiers on train"}
    if doing.doing not in words or not doing.total:
        st.progress(0.0, text="Starting …")
    else:
        text = f"{words[doing.doing]}: {doing.done:,} of {doing.total:,}"
        st.progress(min(1.0, doing.done / doing.total), text=text)
    st.button(
        "Stop", icon=":material/stop_circle:", on_click=intake.ask_to_stop, args=(folder,), key="baselines.stop",
        help="The clips analysed so far are kept; you can continue later.",
    )  # fmt: skip


def offer(data: DataSet, workspace: Workspace, ended: Intake | None) -> None:
    if ended:
        stopped = ended.error == intake.STOPPED
        show, icon = (st.info, "stop_circle") if stopped else (st.error, "error")
        show(parts.plain(f"{parts.when(ended.at_ms)}: {ended.error}"), icon=f":material/{icon}:")
    st.markdown(
        "How far do you get without a neural network? Three baselines: the majority class, a linear classifier on "
        "pooled log-mel statistics, and a classifier on the sequence of onsets. They are computed in the background, "
        "once per data set and split, in about a minute per thousand clips."
    )
    if st.button("Compute", icon=":material/straighten:", key="baselines.compute"):
        try:
            background.compute_baselines(workspace, data)  # False: already started by another process
        except (UserError, WorkspaceError) as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            return
        st.rerun()
