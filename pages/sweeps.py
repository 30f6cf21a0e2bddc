"""Sweeps: the list of sweeps and the form for a new one; /sweeps?id=... shows one sweep and survives a reload."""

from __future__ import annotations

import streamlit as st

from sousa_engine.analysis.sweeps import best_first, tally, trial_rows
from sousa_engine.core.records import Sweep
from sousa_engine.store import Store
from sousa_engine.web import parts, sweep_form, sweep_marks, sweep_view, titles
from sousa_engine.web.guard import refuse

if __name__ == "sweeps":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

REFRESH_S, IDLE_S = 4, 20
SHOWN = 8


def main() -> None:
    sweep_id = st.query_params.get("id", "")
    # A link from this page to itself changes the query but not the address bar (Streamlit 1.67), so it is set here.
    if sweep_id:
        st.query_params["id"] = sweep_id
        with parts.open_store() as store:
            found = store.sweeps.get(sweep_id)
        if found:
            parts.name_tab(titles.of_page(found.name))
            sweep_view.one_sweep(found)
            return
    parts.name_tab(titles.of_page("Sweeps"))
    st.title("Sweeps", anchor=False)
    if sweep_id:
        st.error(parts.plain(f"No sweep has the id {sweep_id!r}. Choose one below."), icon=":material/error:")
    st.caption(
        "Compare backbones, target sets or any other setting, with several seeds each. Combinations that cannot work "
        "are rejected up front; the rest run in the background."
    )
    with parts.open_store() as store:
        there = store.sweeps.all()
    sweep_marks.say_deleted()
    if there:
        moving = any(not found.status.is_over for found in there)
        st.fragment(listed, run_every=REFRESH_S if moving else IDLE_S)()
    sweep_form.new_sweep()


def listed() -> None:
    """The sweeps, newest first."""
    with parts.open_store() as store:
        archived = bool(st.session_state.get("sweeps.archived"))
        every = store.sweeps.all(archived=archived)
        others = store.sweeps.all(archived=not archived)
        shown = every if st.session_state.get("sweeps.all") else every[:SHOWN]
        for found in shown:
            line(found, store)
    if len(every) > SHOWN:
        st.toggle(f"Show all {len(every)}", key="sweeps.all")
    if archived or others:
        if not every:
            st.caption("No sweep is archived." if archived else "All sweeps are archived.")
        st.toggle("Archived", key="sweeps.archived", help="List the archived sweeps instead of the others.")


def line(found: Sweep, store: Store) -> None:
    runs = store.sweeps.runs(found.id)
    count = tally(found, runs)
    best = next(iter(best_first(trial_rows(runs, store.metrics.summaries([run.id for run in runs])))), None)
    reached = f"{parts.plain(best.label)}, {parts.reached(best)}" if best and parts.reached(best) else ""
    parts.sweep_line(found, count, reached)


main()
