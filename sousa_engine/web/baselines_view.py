"""Baselines on the Data page: a table where they are computed, else a button that has them computed.

The work is done by a process of its own (`python -m sousa_engine baselines ...`), which outlives this page and any
other. Every page finds its progress again in the workspace; so does this one, after a reload.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from sousa_engine.analysis import baselines
from sousa_engine.analysis.baselines import Baselines
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.data.manifest import Manifest
from sousa_engine.runs import background
from sousa_engine.web import parts, scan_view
from sousa_engine.workspace import Workspace, intake
from sousa_engine.workspace.intake import Intake

REFRESH_S = 1


def baselines_section(data: DataConfig, manifest: Manifest, workspace: Workspace) -> None:
    """Draw the section; it looks again each second while somebody computes the baselines of this data set."""
    st.subheader("Baselines", anchor=False)
    doing = baselines.look(manifest, workspace)
    running = doing is not None and doing.is_running
    st.fragment(section, run_every=REFRESH_S if running else None)(data, manifest, workspace, running)
    st.page_link(
        parts.page_path("launch"),
        label="Train a linear probe",
        icon=":material/rocket_launch:",
        query_params=scan_view.query_of_launch(data.dataset, lora="probe"),
        help="The next step up: a pretrained backbone that stays as it is, and a new head on top of it.",
    )


def section(data: DataConfig, manifest: Manifest, workspace: Workspace, was_running: bool) -> None:
    """The table, the progress, or the button. When the computation ends, the whole page is drawn anew."""
    doing = baselines.look(manifest, workspace)
    running = doing is not None and doing.is_running
    if running != was_running:
        st.rerun()
    found = baselines.cached(manifest, workspace)
    if found:
        table(found)
    elif doing and running:
        progress(doing, baselines.folder_of(manifest, workspace))
    else:
        offer(data, workspace, doing)


def table(found: Baselines) -> None:
    n = found.baselines[0].n
    st.caption(
        "What the data gives away without a network: a run has to be better to justify its own. "
        f"Test accuracy, n = {n:,}; fitted on train, chosen by valid, as runs are. "
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
            "by": st.column_config.TextColumn("By", width="large"),
        },
        alt="Test accuracy of each baseline with its interval",
    )


def progress(doing: Intake, folder: Path) -> None:
    words = {baselines.LISTENING: "Listening to clips", baselines.CHOOSING: "Fitting classifiers on train"}
    if doing.doing not in words or not doing.total:
        st.progress(0.0, text="Starting ...")
    else:
        text = f"{words[doing.doing]}: {doing.done:,} of {doing.total:,}"
        st.progress(min(1.0, doing.done / doing.total), text=text)
    st.button(
        "Stop", icon=":material/stop_circle:", on_click=intake.ask_to_stop, args=(folder,), key="baselines.stop",
        help="Clips heard so far are kept; a later attempt goes on from there.",
    )  # fmt: skip


def offer(data: DataConfig, workspace: Workspace, ended: Intake | None) -> None:
    if ended:
        stopped = ended.error == intake.STOPPED
        show, icon = (st.info, "stop_circle") if stopped else (st.error, "error")
        show(parts.plain(f"{parts.when(ended.at_ms)}: {ended.error}"), icon=f":material/{icon}:")
    st.markdown(
        "How much does the data give away without a network? Three answers: the most frequent class, a linear "
        "classifier on pooled log-mel statistics, and a classifier on the sequence of onsets. They take about a minute "
        "for a thousand clips, in a process of their own, once per data set and split."
    )
    if st.button("Compute", icon=":material/straighten:", key="baselines.compute"):
        try:
            background.compute_baselines(workspace, data)  # False: somebody was faster; theirs is shown instead
        except (UserError, WorkspaceError) as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            return
        st.rerun()
