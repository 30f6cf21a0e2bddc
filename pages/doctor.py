"""Doctor: checks of this installation, each problem with its fix."""

from __future__ import annotations

import time

import streamlit as st

from sousa_engine.maintenance import doctor
from sousa_engine.maintenance.doctor import Finding
from sousa_engine.web import parts
from sousa_engine.web.guard import refuse
from sousa_engine.workspace import Workspace, default_workspace

if __name__ == "doctor":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

ICONS = {"ok": ":green[:material/check_circle:]", "warning": ":orange[:material/warning:]"}
ICONS |= {"problem": ":red[:material/error:]"}
KEPT_S = 600  # the checks take seconds: a separate process imports PyTorch


def main() -> None:
    st.title("Doctor", anchor=False)
    st.caption("Read-only: changes nothing. Run this from a terminal: `python -m sousa_engine doctor`.")
    workspace = default_workspace()
    if st.button("Check again", icon=":material/refresh:", key="again"):
        examined.clear()
    findings, at_ms = examined(workspace)
    show = {"ok": st.success, "warning": st.warning, "problem": st.error}[doctor.worst(findings)]
    icon = {"ok": "check_circle", "warning": "warning", "problem": "error"}[doctor.worst(findings)]
    show(doctor.summary(findings), icon=f":material/{icon}:")
    for level in ("problem", "warning", "ok"):
        for finding in findings:
            if finding.level == level:
                line(finding)
    st.caption(f"Checked at {parts.when(at_ms)}. Results are kept for {KEPT_S // 60} minutes.")
    with st.expander("As text, for a bug report", icon=":material/content_copy:"):
        st.code(doctor.as_text(findings), language=None, wrap_lines=True)


@st.cache_data(ttl=KEPT_S, show_spinner="Checking Python, PyTorch, disks and the network …")
def examined(workspace: Workspace) -> tuple[list[Finding], int]:
    """The findings, and when they were made. Errors are not cached."""
    here = st.get_option("server.address") or "", int(st.get_option("server.port"))  # as it runs, not as configured
    return doctor.ask(workspace, at=here), time.time_ns() // 1_000_000


def line(finding: Finding) -> None:
    with st.container(border=finding.level != "ok"):
        name, text = st.columns([1, 4], gap="small")
        name.markdown(f"{ICONS[finding.level]} **{parts.plain(finding.name)}**")
        text.text(finding.text)
        if finding.fix:
            text.markdown(f":material/healing: {parts.plain(finding.fix)}")


main()
