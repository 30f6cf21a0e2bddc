"""Weights on the Backbones page: installed and published weights, downloads and imports.

A separate process does the work (`python -m sousa_engine weights ...`) and continues when the page is closed. Its
progress is kept in the intake folder, so any page can show it, also after a reload.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from sousa_engine import backbones
from sousa_engine.backbones import Variant, downloads, pretrained, shelf
from sousa_engine.backbones.shelf import size_text
from sousa_engine.core import inputs
from sousa_engine.core.errors import WeightsError
from sousa_engine.runs import background
from sousa_engine.web import parts
from sousa_engine.workspace import Workspace, intake
from sousa_engine.workspace.intake import Intake

REFRESH_S = 1
_OPEN = "weights.open"


def weights_section(variant: Variant, workspace: Workspace) -> None:
    """Draw the section, refreshed every second while weights of this variant are downloaded or imported."""
    doing = intake.look(pretrained.intake_folder(variant, workspace))
    running = doing is not None and doing.is_running
    if running:
        st.session_state[_OPEN] = variant.name
    is_open = doing is not None or st.session_state.get(_OPEN) == variant.name
    with st.expander("Weights", icon=":material/database:", expanded=is_open):
        this, everyone = st.tabs([variant.name, "All backbones"])
        with this:
            st.fragment(chosen, run_every=REFRESH_S if running else None)(variant, workspace, running)
        with everyone:
            rows = [shelf.row(one, workspace) for one in backbones.VARIANTS.values()]
            table = pd.DataFrame(rows, columns=list(shelf.COLUMNS))
            st.dataframe(table, hide_index=True, width="stretch", height="content")


def chosen(variant: Variant, workspace: Workspace, was_running: bool) -> None:
    """The weights of one variant. When its intake ends, the whole page is redrawn."""
    doing = intake.look(pretrained.intake_folder(variant, workspace))
    if (doing is not None and doing.is_running) != was_running:
        st.rerun()
    here, there = st.columns(2, gap="medium")
    with here:
        installed(variant, workspace)
    with there:
        published_file(variant)
    if doing and doing.is_running:
        progress(variant, workspace, doing)
        return
    if doing:
        stopped = doing.error == intake.STOPPED
        show, icon = (st.info, "stop_circle") if stopped else (st.error, "error")
        show(parts.plain(f"{parts.when(doing.at_ms)}: {doing.error}"), icon=f":material/{icon}:")
    if not variant.embedded:
        ways_in(variant, workspace)


def installed(variant: Variant, workspace: Workspace) -> None:
    found = pretrained.stored(variant, workspace)
    st.markdown("**Installed**")
    if found is None:
        part = downloads.kept(variant.download, pretrained.intake_folder(variant, workspace)) if variant.download else 0
        st.markdown(f"{size_text(part)} of a download that can be resumed." if part else "Nothing yet.")
        return
    rows = [found.origin, size_text(found.size_bytes), str(found.path), f"sha256 {found.recorded or 'not recorded'}"]
    st.markdown("  \n".join(map(parts.plain, rows)))


def published_file(variant: Variant) -> None:
    published = variant.download
    st.markdown("**Available for download**")
    if published is None:
        st.markdown("Nothing: these weights come with this package.")
        return
    size = "" if published.size_bytes is None else f"{size_text(published.size_bytes)}, "
    source = parts.plain(shelf.source_text(variant))
    rows = [
        f"{parts.plain(published.file)} from {source} ([page]({published.page}))",
        f"{size}licence {variant.licence}",
        f"sha256 {published.sha256 or 'not published'}",
        *([] if size else [parts.plain(variant.needs)]),
        *([parts.plain(published.note)] if published.note else []),
    ]
    st.markdown("  \n".join(rows))


def progress(variant: Variant, workspace: Workspace, doing: Intake) -> None:
    if doing.doing != "downloading":
        st.markdown(f":material/hourglass_top: {doing.doing.capitalize()} …")
        return
    share = min(1.0, doing.done / doing.total) if doing.total else 0.0
    words = f"Downloading {size_text(doing.done)}" + (f" of {size_text(doing.total)}" if doing.total else "")
    if doing.bytes_per_s:
        words += f", {size_text(round(doing.bytes_per_s))}/s"
        if doing.total:
            words += f", {parts.duration((doing.total - doing.done) / doing.bytes_per_s)} left"
    st.progress(share, text=words)
    folder = pretrained.intake_folder(variant, workspace)
    st.button(
        "Stop", icon=":material/stop_circle:", on_click=intake.ask_to_stop, args=(folder,), key="weights.stop",
        help="The part already downloaded is kept and will be resumed.",
    )  # fmt: skip


def ways_in(variant: Variant, workspace: Workspace) -> None:
    published = variant.download
    here = pretrained.stored(variant, workspace)
    if published and published.url:
        label = "Download" if here is None else "Download again" if here.is_published else "Download the published file"
        if st.button(
            label, icon=":material/download:", type="secondary" if here else "primary", key="weights.download",
            help="Continues if you close this page. Weights already verified are not downloaded again.",
        ):  # fmt: skip
            start(variant, workspace, ("fetch", variant.name))
    with st.form(f"weights import {variant.name}", border=False):
        field, press = st.columns([4, 1], vertical_alignment="bottom")
        with field:
            named = st.text_input(
                "A weights file on this machine", key=f"weights.file {variant.name}",
                placeholder=f"/path/to/{published.file if published else 'model.safetensors'}",
                help="safetensors, or a PyTorch file with only tensors. All tensors must match this backbone.",
            )  # fmt: skip
        with press:
            pressed = st.form_submit_button("Check and import", width="stretch")
    if pressed:
        try:
            file = inputs.typed_path(named, WeightsError) if named.strip() else Path()
        except WeightsError as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            return
        if not file.is_absolute():
            st.error("Enter an absolute path (starting with / or ~).")
        else:
            start(variant, workspace, ("import", str(file), "--as", variant.name))


def start(variant: Variant, workspace: Workspace, words: Sequence[str]) -> None:
    """Start the work, and redraw the page so that it shows the progress."""
    try:
        background.take_in_weights(workspace, variant, words)  # False: already started by another process
    except WeightsError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        return
    st.session_state[_OPEN] = variant.name
    st.rerun()
