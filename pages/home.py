"""Studio: an introduction, three steps and the newest runs."""

from __future__ import annotations

import streamlit as st

from sousa_engine.analysis.sweeps import tally
from sousa_engine.core.records import RunRow
from sousa_engine.store import Store
from sousa_engine.web import parts
from sousa_engine.web.guard import refuse

if __name__ == "home":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

STEPS = (  # page, icon, title, text, link
    (
        "backbones",
        "account_tree",
        "Tick modules",
        "Explore a backbone's module tree and tick the modules that get LoRA. The trainable-parameter count updates "
        "with each tick.",
        "Open the module tree",
    ),
    (
        "launch",
        "rocket_launch",
        "Launch a run",
        "All fields have sensible defaults and are checked as you type; you see what the run will do before you start "
        "it.",
        "Open the form",
    ),
    (
        "runs",
        "monitoring",
        "Watch and compare",
        "Watch curves live, then compare results side by side with sample sizes and confidence intervals.",
        "See the runs",
    ),
)
NEWEST, NEWEST_SWEEPS = 5, 3


def main() -> None:
    st.title("SOUSA engine", anchor=False)
    st.markdown(
        "Fine-tune audio backbones with LoRA on this machine. The embedded backbones and the 40 synthesised drum "
        "rudiments need no data of your own, no GPU and no internet connection.",
        width=720,
    )
    for column, (page, icon, title, text, label) in zip(st.columns(3), STEPS, strict=True):
        with column.container(border=True, height="stretch"):
            st.subheader(title, anchor=False, icon=f":material/{icon}:")
            st.markdown(text)
            st.space("stretch")
            st.page_link(parts.page_path(page), label=f":primary[{label}]", icon=":material/arrow_forward:")
    st.page_link(
        parts.page_path("data"),
        label=":primary[Use your own recordings]",
        icon=":material/library_music:",
        width="content",
    )
    with parts.open_store() as store:
        runs = store.runs.listing(limit=NEWEST).rows
        st.subheader("Newest runs", anchor=False)
        if not runs and not parts.forgotten_runs(store):
            st.caption("Nothing trained yet. A first run on the embedded data takes a few minutes.")
        for run in runs:
            run_line(run)
        sweeps(store)


def sweeps(store: Store) -> None:
    newest = store.sweeps.all(archived=False)[:NEWEST_SWEEPS]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Newest sweeps" if newest else "Sweeps", anchor=False, width="content")
        st.page_link(parts.page_path("sweeps"), label=":primary[New sweep]", icon=":material/grid_view:")
    if not newest:
        st.caption("Compare backbones, target sets or any other setting, with several seeds each.")
    for found in newest:
        count = tally(found, store.sweeps.runs(found.id))
        parts.sweep_line(found, count)


def run_line(run: RunRow) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", border=True):
        st.page_link(
            parts.page_path("run"),
            label=f":primary[{parts.plain(run.title)}]",
            query_params={"id": run.id},
            width="content",
        )
        if f"seed {run.seed}" not in run.title:
            st.caption(f"seed {run.seed}", width="content")
        parts.status_badge(run.status)
        if run.is_random:
            parts.weights_badge(run)
        if run.test is not None:
            st.caption(f"test accuracy {parts.percent(run.test)}, n = {run.test_n:,}", width="content")
        st.caption(parts.when(run.created_at_ms), width="content")


main()
