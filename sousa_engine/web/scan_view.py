"""Files on the Data page: what decoding every one of them found, or a button that has them decoded.

The work is done by a process of its own (`python -m sousa_engine scan ...`), which outlives this page and any other,
and which decodes in workers of limited memory and time: this page never decodes to find out. Every page finds the
progress again in the workspace; so does this one, after a reload.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from sousa_engine.analysis.export import findings_csv
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.data import findings, scan, synth
from sousa_engine.data.findings import KINDS, Report
from sousa_engine.runs import background
from sousa_engine.web import parts
from sousa_engine.workspace import Workspace, intake
from sousa_engine.workspace.intake import Intake

REFRESH_S = 1
_STRICT = "strict"


def files_section(data: DataConfig, workspace: Workspace) -> None:
    """Draw the section; it looks again each second while somebody scans. Nothing is drawn for embedded sets, whose
    clips are synthesised, nor where there is no data set."""
    if data.dataset in synth.PRESETS:
        return
    try:
        stamp = scan.verdicts_stamp(data, workspace)
        _report(data.model_dump_json(), str(workspace.root), stamp)
    except (UserError, WorkspaceError):  # said above, where the data set is opened
        return
    st.subheader("Files", anchor=False)
    # Not in the fragment: the link to Launch, above, says the same.
    strict = st.toggle(
        "Strict", key=_STRICT, bind="query-params",
        help="Refuse to train while a file or label is wrong. Off: such files are left out, and the rest trains.",
    )  # fmt: skip
    data = data.model_copy(update={"strict": strict})
    doing = scan.look(data, workspace)
    running = doing is not None and doing.is_running
    st.fragment(section, run_every=REFRESH_S if running else None)(data, workspace, running)


def query_of_launch(dataset: str, **more: str) -> dict[str, str]:
    """What a link to Launch carries: the data set, and that the section's switch is on, or will be when it is drawn."""
    is_strict = st.session_state.get(_STRICT, st.query_params.get(_STRICT) == "true")
    # Not the switch's own name: what a widget here is bound to, Streamlit takes out of the next page's address.
    return {"dataset": dataset, **more, **({"data.strict": "true"} if is_strict else {})}


def forget() -> None:
    """Look at the files' names, sizes and times again."""
    _report.clear()


def section(data: DataConfig, workspace: Workspace, was_running: bool) -> None:
    """The findings, and the progress or a button. When a scan ends, the whole page is drawn anew."""
    doing = scan.look(data, workspace)
    running = doing is not None and doing.is_running
    if running != was_running:
        forget()
        st.rerun()
    if running:
        progress(doing, scan.folder_of(data, workspace))
        return
    found = _report(data.model_dump_json(), str(workspace.root), scan.verdicts_stamp(data, workspace))
    in_short(found)
    if found.findings:
        table(found)
    offer(data, workspace, found, doing)


@st.cache_data(max_entries=12, ttl=600, show_spinner="Looking at the files ...")
def _report(config: str, root: str, stamp: tuple[int, int]) -> Report:
    """stamp: of what scans so far found."""
    data = DataConfig.model_validate_json(config)
    return findings.report(data, scan.verdicts(data, Workspace(root=Path(root))))


def in_short(found: Report) -> None:
    """One sentence: can it be trained on, and with how much of it."""
    words = parts.plain(findings.in_words(found))
    if waiting := found.files - found.scanned:
        words += f"; {waiting:,} of the files are still to be decoded"
    if found.refusal and found.strict:
        st.markdown(f":red[:material/block:] {words}: a strict run is refused.")
    elif found.errors:
        st.markdown(f":orange[:material/warning:] {words}.")
    else:
        st.markdown(f"{'' if waiting else ':green[:material/check:] '}{words}.")
    if others := findings.passed_over(found):
        st.caption(parts.plain(f"{others[0].upper()}{others[1:]}."))


def table(found: Report) -> None:
    """Findings by kind, then one by one, with a download of them all."""
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
            "why": st.column_config.TextColumn("Reason and cure", width=620),
            "level": st.column_config.TextColumn("Level", width=76, help="Errors are left out; warnings are used."),
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
        st.progress(0.0, text="Starting ...")
    else:
        rate = f", {doing.bytes_per_s:,.0f} a second" if doing.bytes_per_s else ""
        st.progress(min(1.0, doing.done / doing.total), text=f"Decoding files: {doing.done:,} of {doing.total:,}{rate}")
    st.button(
        "Stop", icon=":material/stop_circle:", on_click=intake.ask_to_stop, args=(folder,), key="scan.stop",
        help="What was decoded is kept; a later scan goes on from there.",
    )  # fmt: skip


def offer(data: DataConfig, workspace: Workspace, found: Report, ended: Intake | None) -> None:
    if ended:
        stopped = ended.error == intake.STOPPED
        show, icon = (st.info, "stop_circle") if stopped else (st.error, "error")
        show(parts.plain(f"{parts.when(ended.at_ms)}: {ended.error}"), icon=f":material/{icon}:")
    waiting = found.files - found.scanned
    if waiting:
        st.caption(
            "Headers alone were read so far. A scan decodes every file to its end, in a process of its own and once; "
            "a run does it too before it trains."
        )
    label = "Scan the files" if waiting else "Scan again"
    if st.button(
        label, icon=":material/troubleshoot:", type="secondary" if waiting else "tertiary", key="scan.start",
        help="Decodes the files that no scan has seen." if waiting else "Decodes every file anew.",
    ):  # fmt: skip
        try:
            background.scan_data(
                workspace, data, fresh=not waiting
            )  # False: somebody was faster; theirs is shown instead
        except (UserError, WorkspaceError) as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            return
        st.rerun()
